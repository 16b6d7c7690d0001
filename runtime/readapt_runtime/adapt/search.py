"""The search for a better starting point than the old weights: two scalars for the whole model.

    ΔW(α, β) = α · s B A + β · D_r        D_r: low-rank drift of the base, new minus old

ReLoRA (arXiv 2606.02606) finds them by Bayesian optimisation: Gaussian process, expected improvement. The adapter and
the drift are attached side by side and the scalars are run-time scales, so a trial is one forward pass over the search
examples (and over a part of the retention text) and copies no weight. Task loss alone drives β to -1, which undoes
the base update; hence the retention constraint. Only a few winners are folded back to the adapter's rank, and scored
again as they would be served. (1, 0), the old weights, is never refactored and wins ties.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import optuna
import torch
from torch import Tensor

from readapt_runtime.adapt.base import LoadedBase
from readapt_runtime.adapt.errors import Diverged
from readapt_runtime.adapt.factors import SideFactors
from readapt_runtime.lora_format import LoraAdapter, LoraModule
from readapt_runtime.lowrank import LowRank, add, energy, norm, recompress, scale

ALPHA_RANGE = (0.0, 1.5)
BETA_RANGE = (-1.0, 1.0)

_FLAT_BELOW = 0.01
"""Nats; differences of losses well below this do not matter to the search."""


@dataclass(frozen=True, slots=True)
class Point:
    """(1, 0) is Copy, (0, 0) is the new base alone."""

    alpha: float
    beta: float


COPY = Point(1.0, 0.0)
SEEDS = (COPY, Point(0.0, 0.0), Point(1.0, -0.5), Point(1.0, 0.5))


@dataclass(frozen=True, slots=True)
class Measured:
    """One point, measured on the search examples and on a part of the retention text."""

    point: Point
    losses: tuple[float, ...]
    """Nats per answer token, per example; always the same examples."""
    retention: float | None
    floor: float | None
    """What retention must reach; None where it constrains nothing."""

    @property
    def excess(self) -> float:
        """How far retention is below its floor; not positive when the constraint holds."""
        return self.floor - self.retention if self.floor is not None and self.retention is not None else -1.0

    @property
    def feasible(self) -> bool:
        return self.excess <= 0

    @property
    def loss(self) -> float:
        return math.fsum(self.losses) / len(self.losses)


class SideBySide:
    """The adapter and the drift of its modules as one set of factors whose scalars can be set in place."""

    def __init__(self, adapter: LoraAdapter, drift: Mapping[str, LowRank], base: LoadedBase) -> None:
        def put(factor: Tensor) -> Tensor:
            return factor.to(base.device, base.dtype)

        self._adapter = adapter
        self.factors: dict[str, SideFactors] = {}
        for name, module in adapter.modules.items():
            a, b = put(module.a), put(module.b)
            if name in drift:
                a = torch.cat([a, put(drift[name].right)], dim=0)
                b = torch.cat([b, put(drift[name].left)], dim=1)
            self.factors[name] = SideFactors(a, b, torch.zeros(a.shape[0], device=base.device))

    def move_to(self, point: Point) -> None:
        for name, module in self._adapter.modules.items():
            scales = self.factors[name].scale
            scales[: module.rank] = point.alpha * module.scale
            scales[module.rank :] = point.beta


def search(evaluate: Callable[[Point], Measured], trials: int, seed: int) -> list[Measured]:
    """``trials`` measurements in order, the SEEDS first. Equal seed and measurements give equal points.

    The sampler is made anew for every trial from (seed, trial number), so that where a search goes does not depend on
    whether it was interrupted. Raises Diverged for a loss that is not finite.
    """
    # Errors only: optuna warns where an optional package would make it faster.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="minimize")
    found: list[Measured] = []
    for number in range(trials):
        study.sampler = optuna.samplers.GPSampler(seed=(seed * 1000 + number) % 2**32, n_startup_trials=len(SEEDS))
        if number < len(SEEDS):
            study.enqueue_trial({"alpha": SEEDS[number].alpha, "beta": SEEDS[number].beta})
        trial = study.ask()
        point = Point(trial.suggest_float("alpha", *ALPHA_RANGE), trial.suggest_float("beta", *BETA_RANGE))
        measured = evaluate(point)
        if not math.isfinite(measured.loss):
            raise Diverged(f"the loss at α={point.alpha:.3f}, β={point.beta:.3f} is {measured.loss}")
        if measured.floor is not None:
            trial.set_constraint("retention", measured.excess)
        # The base alone may lose a hundred times as much as the adapter: on a linear scale that one point would
        # leave the Gaussian process nothing to tell the others apart by.
        study.tell(trial, math.log(measured.loss + _FLAT_BELOW))
        found.append(measured)
    return found


def fold(adapter: LoraAdapter, drift: Mapping[str, LowRank], point: Point) -> LoraAdapter:
    """The candidate at ``point`` with every module at its old rank and scale.

    Without drift only B is scaled and nothing is refactored; at (1, 0) the result is ``adapter`` itself.
    """
    if point == COPY:
        return adapter
    return LoraAdapter({name: _fold(module, drift.get(name), point) for name, module in adapter.modules.items()})


def _fold(module: LoraModule, drift: LowRank | None, point: Point) -> LoraModule:
    if drift is None or point.beta == 0:
        return LoraModule(module.name, module.a, module.b * point.alpha, module.scale)
    folded = recompress(_sum(module, drift, point), module.rank)
    # The product of the stored factors is multiplied by the scale again when it is used.
    root = math.sqrt(abs(module.scale))
    sign = math.copysign(1.0, module.scale)
    return LoraModule(module.name, folded.right / root, folded.left / (sign * root), module.scale)


def _sum(module: LoraModule, drift: LowRank, point: Point) -> LowRank:
    own = scale(LowRank(module.b.float(), module.a.float()), point.alpha * module.scale)
    return add(own, scale(drift, point.beta))


def kept_energy(adapter: LoraAdapter, drift: Mapping[str, LowRank], point: Point) -> float:
    """Share of Σ‖ΔW(α, β)‖² that folding keeps."""
    kept = total = 0.0
    for name, module in adapter.modules.items():
        if name in drift and point.beta != 0:
            whole = _sum(module, drift[name], point)
            size = norm(whole) ** 2
            kept, total = kept + size * energy(whole, module.rank), total + size
    return kept / total if total > 0 else 1.0


def best_points(trials: Sequence[Measured], count: int) -> list[Point]:
    """The ``count`` feasible points of lowest loss other than (1, 0) and (0, 0), best first."""
    ordered = sorted((t for t in trials if t.feasible and t.point not in SEEDS[:2]), key=lambda t: t.loss)
    return [t.point for t in ordered[:count]]


def choose_start(copy: Measured, folded: Sequence[Measured]) -> Measured:
    """The folded candidate of lowest loss, or ``copy`` when that is not better by more than one standard error."""
    candidates = [f for f in folded if f.feasible]
    if not candidates:
        return copy
    best = min(candidates, key=lambda f: f.loss)
    return best if copy.loss - best.loss > _paired_error(copy.losses, best.losses) else copy


def _paired_error(first: Sequence[float], second: Sequence[float]) -> float:
    """Standard error of the mean difference; infinite for a single pair."""
    differences = torch.tensor(first, dtype=torch.float64) - torch.tensor(second, dtype=torch.float64)
    if differences.numel() < 2:
        return math.inf
    spread: Tensor = differences.std() / math.sqrt(differences.numel())
    return float(spread)
