"""The pull back to the starting point while an adapter is tuned.

    Σ_m ‖s B A - s₀ B₀ A₀‖²_F / Σ_m ‖s₀ B₀ A₀‖²_F          over the modules m

It is a function of the product, so it does not depend on how a product is split into factors, and it is computed from
[rank, rank] Gram matrices: never a dense product, gradients through autograd.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from readapt_runtime.adapt.factors import SideFactors


class Anchor:
    """Distance of tuned factors from where they started, relative to the starting point's own size."""

    def __init__(self, start: Mapping[str, SideFactors]) -> None:
        """``start`` is copied. A starting point of zero (training from scratch) pulls nowhere."""
        self._start = {
            name: (s.b.detach().float() * s.scale, s.a.detach().float().clone()) for name, s in start.items()
        }
        size = sum(float(_squared(b, a)) for b, a in self._start.values())
        self._weight = 1.0 / size if size > 0 else 0.0

    def __call__(self, factors: Mapping[str, SideFactors]) -> Tensor:
        """The scalar penalty, differentiable in the factors' ``a`` and ``b``."""
        total = torch.zeros(())
        for name, side in factors.items():
            b0, a0 = self._start[name]
            # The difference is itself a product of stacked factors: [sB, -s₀B₀] [A; A₀].
            total = total + _squared(torch.cat([side.b * side.scale, -b0], dim=1), torch.cat([side.a, a0], dim=0))
        return total.clamp_min(0) * self._weight


def _squared(left: Tensor, right: Tensor) -> Tensor:
    """‖left right‖²_F = tr((leftᵀ left)(right rightᵀ))."""
    return ((left.T @ left) * (right @ right.T)).sum()
