"""How many directions of each module's change an adapter keeps.

In: per module the singular values that were computed and the exact norm. Out: a rank for each. Next: ``extraction``
writes that many of its directions. Rank is a serving cost, so every rank is one of those that serving groups its work
by, or the most that the module or the policy has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from readapt_api.bounds import BUDGET, ENERGY, RANK, RELATIVE_ERROR, Range
from readapt_api.errors import Terminal
from readapt_runtime.extract.budget import spend

SERVING_RANKS = (8, 16, 32, 64, 128, 256, 512)
MAX_RANK = 64
"""Where nobody says otherwise."""


class BadPolicy(Terminal):
    """A rank policy that asks for nothing possible."""


@dataclass(frozen=True, slots=True)
class Spectrum:
    """What is known of one module's change before its rank is chosen."""

    shape: tuple[int, int]
    """(out, in)."""
    values: torch.Tensor  # [computed] leading singular values, descending
    norm: float
    """‖ΔW‖_F, exact."""

    @property
    def captured(self) -> torch.Tensor:
        """[computed] float64, the share of ‖ΔW‖² in the leading directions."""
        return (self.values.double().square().cumsum(0) / self.norm**2).clamp(max=1.0)


@dataclass(frozen=True, slots=True)
class Choice:
    """A module's rank, the share of ‖ΔW‖² it keeps, and whether the maximum rank kept it from its target."""

    rank: int
    energy: float
    capped: bool


@dataclass(frozen=True, slots=True)
class RankPolicy:
    """Exactly one of the first four."""

    fixed: int | None = None
    """Every module's rank."""
    energy: float | None = None
    """Share of ‖ΔW‖² that each module keeps, in (0, 1]."""
    relative_error: float | None = None
    """‖ΔW - B A‖ / ‖ΔW‖ that each module may have, in (0, 1); the energy is then 1 minus its square."""
    budget: int | None = None
    """Parameters of the whole adapter; see ``extract.budget``."""
    max_rank: int = MAX_RANK
    targets: tuple[str, ...] = ()
    """Suffixes of module names; empty: every linear module of the decoder layers."""

    def __post_init__(self) -> None:
        given = [self.fixed, self.energy, self.relative_error, self.budget]
        if sum(value is not None for value in given) != 1:
            raise BadPolicy("give exactly one of a fixed rank, an energy, a relative error and a budget")
        if self.max_rank not in RANK:
            raise BadPolicy(f"the maximum rank {self.max_rank} is not {RANK}")
        if self.fixed is not None and not 1 <= self.fixed <= self.max_rank:
            raise BadPolicy(f"rank {self.fixed} is not at least 1 and at most the maximum rank, {self.max_rank}")
        _check("energy", self.energy, ENERGY)
        _check("relative error", self.relative_error, RELATIVE_ERROR)
        _check("budget", self.budget, BUDGET)

    @property
    def computed(self) -> int:
        """How many singular triplets must be computed before ``choose`` can tell."""
        return serving_rank(self.fixed, self.max_rank) if self.fixed is not None else self.max_rank

    def choose(self, spectra: Mapping[str, Spectrum]) -> dict[str, Choice]:
        """The rank of every module; 0 only where a budget has nothing left for it. Raises BadPolicy."""
        if self.budget is None:
            return {name: self._choose_one(spectrum) for name, spectrum in spectra.items()}
        gains = {name: spectrum.values.double().square() for name, spectrum in spectra.items()}
        costs = {name: sum(spectrum.shape) for name, spectrum in spectra.items()}
        steps = {name: serving_ranks(gain.numel()) for name, gain in gains.items()}
        ranks = spend(self.budget, gains, costs, steps)
        if not any(ranks.values()):
            least = min(costs[name] * steps[name][0] for name in spectra)
            raise BadPolicy(f"a budget of {self.budget} parameters holds no module; the smallest takes {least}")
        return {n: Choice(r, _kept(spectra[n].captured, r), capped=False) for n, r in ranks.items()}

    def targets_module(self, name: str) -> bool:
        return not self.targets or any(name == t or name.endswith(f".{t}") for t in self.targets)

    def _choose_one(self, spectrum: Spectrum) -> Choice:
        captured = spectrum.captured
        wanted = self.fixed if self.fixed is not None else self._reaching(captured)
        rank = min(serving_rank(wanted, self.max_rank), captured.numel())
        return Choice(rank, _kept(captured, rank), capped=wanted > self.max_rank)

    def _reaching(self, captured: torch.Tensor) -> int:
        """The fewest directions that reach the target; more than the maximum rank when none of those computed do."""
        target = 1 - self.relative_error**2 if self.relative_error is not None else self.energy or 0.0
        # Rounding may leave the last bit of the target out of reach of exact arithmetic.
        reached = captured >= target * (1 - 1e-6)
        return int(reached.int().argmax()) + 1 if bool(reached.any()) else self.max_rank + 1


def serving_rank(wanted: int, max_rank: int) -> int:
    """The smallest serving rank that holds ``wanted`` directions, at most ``max_rank``."""
    return min(next((rank for rank in SERVING_RANKS if rank >= wanted), max_rank), max_rank)


def serving_ranks(most: int) -> tuple[int, ...]:
    """The ranks that a module with ``most`` directions can have, ascending."""
    return (*(rank for rank in SERVING_RANKS if rank < most), most)


def _kept(captured: torch.Tensor, rank: int) -> float:
    return float(captured[rank - 1]) if rank else 0.0


def _check(name: str, value: float | None, bounds: Range) -> None:
    if value is not None and value not in bounds:
        raise BadPolicy(f"{name} {value} is not {bounds}")
