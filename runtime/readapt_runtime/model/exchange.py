"""What a decoder asks of the other ranks that hold shares of it: the protocol, and a decoder alone."""

from __future__ import annotations

from typing import Protocol

import torch

from readapt_runtime.engine.core import Batch
from readapt_runtime.model.config import Linear


class Exchange(Protocol):
    """Every rank calls the same methods in the same order, with tensors of the same shape."""

    def plan(self, batch: Batch) -> Batch:
        """Before each step: keeps the segments that ``add`` computes; the batch without them is the LoRA backend's."""
        ...

    def add(self, layer: int, linear: Linear, x: torch.Tensor, y: torch.Tensor) -> None:
        """Adds to y what the ranks compute together for adapters of which none has a whole factor, in place."""
        ...

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """The sum over the ranks, of any shape, in place; the same bits on every rank."""
        ...

    def join(self, logits: torch.Tensor) -> torch.Tensor:
        """Shares ``[rows, size]`` of the vocabulary side by side, ``[rows, vocab]``, on rank 0; elsewhere as given."""
        ...


class Alone:
    """See ``Exchange``; of one rank."""

    def plan(self, batch: Batch) -> Batch:
        return batch

    def add(self, layer: int, linear: Linear, x: torch.Tensor, y: torch.Tensor) -> None:
        pass

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def join(self, logits: torch.Tensor) -> torch.Tensor:
        return logits
