"""What a decoder layer does besides attention and LoRA: the protocol, and plain torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F

from readapt_runtime.engine.draws import Draws
from readapt_runtime.engine.sampler import draw

LinearOp = Callable[[torch.Tensor], torch.Tensor]
"""x ``[tokens, in]`` -> ``[tokens, out]``."""


class Ops(Protocol):
    def linear(self, weight: torch.Tensor, bias: torch.Tensor | None) -> LinearOp:
        """The product with a weight ``[out, in]``, plus a bias ``[out]``.

        The weight may be kept in another form: the caller lets go of it.
        """
        ...

    def add_norm(self, hidden: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor) -> torch.Tensor:
        """``hidden += delta``, then RMS norm of hidden ``[tokens, width]``."""
        ...

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """``silu(gate) * up`` of ``[tokens, 2 * inner]``."""
        ...

    def greedy(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of logits ``[rows, vocab]`` the first largest (int64) and whether all are finite (bool), per row."""
        ...

    def draw(self, logits: torch.Tensor, best: torch.Tensor, draws: Draws) -> torch.Tensor:
        """See ``sampler.draw``; ``best`` is of ``greedy``."""
        ...


class TorchOps:
    """See ``Ops``."""

    def __init__(self, eps: float) -> None:
        self._eps = eps

    def linear(self, weight: torch.Tensor, bias: torch.Tensor | None) -> LinearOp:
        return lambda x: F.linear(x, weight, bias)

    def add_norm(self, hidden: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor) -> torch.Tensor:
        if delta is not None:
            hidden += delta
        return F.rms_norm(hidden, weight.shape, weight, self._eps)

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    def greedy(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # a NaN or an infinity anywhere in the row shows in its sum
        return logits.argmax(dim=-1), logits.float().sum(dim=-1).isfinite()

    def draw(self, logits: torch.Tensor, best: torch.Tensor, draws: Draws) -> torch.Tensor:
        return draw(logits, best, draws)
