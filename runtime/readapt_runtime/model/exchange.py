"""What a decoder asks of the other ranks that hold shares of it: the protocol, and a decoder alone."""

from __future__ import annotations

from typing import Protocol

import torch


class Exchange(Protocol):
    """Every rank calls the same methods in the same order, with tensors of the same shape."""

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """The sum over the ranks, of any shape, in place; the same bits on every rank."""
        ...

    def join(self, logits: torch.Tensor) -> torch.Tensor:
        """Shares ``[rows, size]`` of the vocabulary side by side, ``[rows, vocab]``, on rank 0; elsewhere as given."""
        ...


class Alone:
    """See ``Exchange``; of one rank."""

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def join(self, logits: torch.Tensor) -> torch.Tensor:
        return logits
