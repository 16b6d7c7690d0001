"""The two LoRA products in plain torch: the oracle of every kernel, and the CPU backend.

Factors are stored as *rank rows*: A ``[rank, in]`` and Bᵀ ``[rank, out]``, both row-major, so that the rank is only
a loop bound and memory is contiguous along the wide axis.
"""

from __future__ import annotations

import torch


def shrink(x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """``x · Aᵀ``: x ``[tokens, in]``, A ``[rank, in]`` -> bridge ``[tokens, rank]`` in the dtype of x.

    The bridge is rounded to the dtype of x, as PEFT does, so that every path rounds at the same place.
    """
    return x @ a.t()


def expand_(y: torch.Tensor, bridge: torch.Tensor, b_t: torch.Tensor, scale: float) -> None:
    """``y += scale · bridge · Bᵀ``: y ``[tokens, out]`` (may be a column slice), Bᵀ ``[rank, out]``.

    The scale is applied in the epilogue of the product, on its accumulator: folded into B it would round B again.
    """
    y.addmm_(bridge, b_t, alpha=scale)
