"""How many directions of a module's change an adapter keeps.

In: the singular values that were computed and the exact norm. Out: a rank. Rank is a serving cost, so it is rounded up
to the ranks that serving groups its work by.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from readapt_api.bounds import ENERGY, RANK
from readapt_api.errors import Terminal

SERVING_RANKS = (8, 16, 32, 64)


class BadPolicy(Terminal):
    """A rank policy that asks for nothing possible."""


@dataclass(frozen=True, slots=True)
class RankPolicy:
    """Exactly one of ``fixed`` (every module) and ``energy`` (share of ‖ΔW‖² per module, in (0, 1])."""

    fixed: int | None = None
    energy: float | None = None
    max_rank: int = SERVING_RANKS[-1]
    targets: tuple[str, ...] = ()
    """Suffixes of module names; empty: every linear module of the decoder layers."""

    def __post_init__(self) -> None:
        if (self.fixed is None) == (self.energy is None):
            raise BadPolicy("give exactly one of a fixed rank and an energy")
        if self.max_rank not in RANK:
            raise BadPolicy(f"the maximum rank {self.max_rank} is not {RANK}")
        if self.fixed is not None and not 1 <= self.fixed <= self.max_rank:
            raise BadPolicy(f"rank {self.fixed} is not at least 1 and at most {self.max_rank}, the maximum rank")
        if self.energy is not None and self.energy not in ENERGY:
            raise BadPolicy(f"energy {self.energy} is not {ENERGY}")

    @property
    def computed(self) -> int:
        """How many singular triplets must be computed before ``choose`` can tell."""
        return serving_rank(self.fixed, self.max_rank) if self.fixed is not None else self.max_rank

    def choose(self, singular_values: torch.Tensor, norm: float) -> Choice:
        """The rank of one module: ``singular_values`` are its leading ones, ``norm`` is the exact ‖ΔW‖_F."""
        available = singular_values.numel()
        captured = singular_values.double().square().cumsum(0) / norm**2
        if self.fixed is not None:
            wanted = self.fixed
        else:
            # Rounding may leave the last bit of the target out of reach of exact arithmetic.
            reached = captured >= (self.energy or 0.0) * (1 - 1e-6)
            wanted = int(reached.int().argmax()) + 1 if bool(reached.any()) else self.max_rank + 1
        rank = min(serving_rank(wanted, self.max_rank), available)
        return Choice(rank, min(float(captured[rank - 1]), 1.0), capped=wanted > self.max_rank)

    def targets_module(self, name: str) -> bool:
        return not self.targets or any(name == t or name.endswith(f".{t}") for t in self.targets)


@dataclass(frozen=True, slots=True)
class Choice:
    """A module's rank, the share of ‖ΔW‖² it keeps, and whether the maximum rank kept it from its target."""

    rank: int
    energy: float
    capped: bool


def serving_rank(wanted: int, max_rank: int) -> int:
    """The smallest serving rank that holds ``wanted`` directions, at most ``max_rank``."""
    return min(next((rank for rank in SERVING_RANKS if rank >= wanted), max_rank), max_rank)
