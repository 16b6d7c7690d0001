"""Ways to find where an adapter starts from after a base move, without a step of training.

In: a ``Ground``, one adapter over one base move. Out: a ``Start``. All that try points α·ΔW + β·D do it on the same
search examples under the same constraint on retention; their two best are folded to the adapter's rank, measured as
they would be served, and must beat Copy by a standard error, as in ``readapt_runtime.adapt.relora``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from readapt_runtime.adapt.data import Splits
from readapt_runtime.adapt.factors import SideFactors, side_factors
from readapt_runtime.adapt.item import Move
from readapt_runtime.adapt.retention import Retention, Yardstick
from readapt_runtime.adapt.search import COPY, Measured, Point, SideBySide, choose_start, fold, search
from readapt_runtime.adapt.tokens import encode
from readapt_runtime.adapt.transported import Transport
from readapt_runtime.adapt.trial import Meter
from readapt_runtime.lora_format import LoraAdapter
from readapt_runtime.lowrank import LowRank
from readapt_runtime.progress import Log

TRIALS = 8
GRID = tuple(Point(alpha, beta) for alpha in (1.0, 1.25) for beta in (0.0, -0.25, 0.25, -0.5))
"""As many as TRIALS, Copy first."""
MIN_RETENTION = 0.9
_FOLDED = 2
_NOTHING = Point(0.0, 0.0)

Points = tuple[Point, ...]
"""One for the whole model, or one per group of successive layers."""


@dataclass(frozen=True, slots=True)
class Ground:
    """One adapter over one base move."""

    move: Move
    adapter: LoraAdapter
    splits: Splits
    seed: int
    yardstick: Yardstick
    replay: Sequence[Sequence[int]]
    """Text of the new base."""
    of_copy: Retention | None
    siblings: Sequence[Point]
    """What the search chose for other adapters over the same move."""
    log: Log

    def meter(self) -> Meter:
        rows = encode(self.move.new, self.splits.search)
        return Meter(self.move.new, rows, self.yardstick, MIN_RETENTION, self.of_copy)

    def side(self, adapter: LoraAdapter) -> Mapping[str, SideFactors]:
        return side_factors(adapter, self.move.new)


@dataclass(frozen=True, slots=True)
class Trial:
    points: Points
    measured: Measured


@dataclass(frozen=True, slots=True)
class Start:
    adapter: LoraAdapter
    points: Points = (COPY,)
    trials: int = 0
    """Points that were tried."""
    loss: float | None = None
    """Nats per answer token on the search examples, which the points were chosen on."""
    facts: Mapping[str, float] = field(default_factory=dict)


def copy(ground: Ground) -> Start:
    return Start(ground.adapter)


def grid(ground: Ground) -> Start:
    return try_points(ground, GRID)


def siblings(ground: Ground) -> Start:
    """Copy and what other adapters over the same move came to: no search of its own."""
    return try_points(ground, (COPY, *dict.fromkeys(point for point in ground.siblings if point != COPY)))


def searched(ground: Ground) -> Start:
    return _search(ground, ground.adapter)


def transported(ground: Ground) -> Start:
    return Start(_transport(ground))


def searched_from_transport(ground: Ground) -> Start:
    return _search(ground, _transport(ground))


def try_points(ground: Ground, points: Sequence[Point]) -> Start:
    """The first point is Copy."""
    meter, side = ground.meter(), SideBySide(ground.adapter, ground.move.drift, ground.move.new)
    return settle(ground, ground.adapter, meter, [Trial((p,), _measure(meter, side, p)) for p in points])


def settle(ground: Ground, adapter: LoraAdapter, meter: Meter, trials: Sequence[Trial]) -> Start:
    """Folds the two best of ``trials``, of which the first is Copy, and chooses between them and Copy."""
    first, *others = trials
    kept = [t for t in others if t.measured.feasible and set(t.points) not in ({COPY}, {_NOTHING})]
    best = sorted(kept, key=lambda trial: trial.measured.loss)[:_FOLDED]
    folded = [fold_groups(adapter, ground.move.drift, trial.points) for trial in best]
    again = [meter.measure(t.measured.point, ground.side(f)) for t, f in zip(best, folded, strict=True)]
    chosen = choose_start(first.measured, again)
    for trial, lora, measured in zip(best, folded, again, strict=True):
        if measured is chosen:
            return Start(lora, trial.points, len(trials), chosen.loss, {"unfolded": trial.measured.loss})
    return Start(adapter, first.points, len(trials), chosen.loss)


def fold_groups(adapter: LoraAdapter, drift: Mapping[str, LowRank], points: Points) -> LoraAdapter:
    """``fold`` with a point per group of layers."""
    layers = 1 + max(map(layer_of, adapter.modules))
    modules = {}
    for group, point in enumerate(points):
        part = {n: m for n, m in adapter.modules.items() if layer_of(n) * len(points) // layers == group}
        modules |= fold(LoraAdapter(part), drift, point).modules
    return LoraAdapter({name: modules[name] for name in adapter.modules})


def layer_of(module: str) -> int:
    """Of a name such as ``model.layers.3.mlp.up_proj``."""
    return int(module.split(".")[2])


def _search(ground: Ground, adapter: LoraAdapter) -> Start:
    meter, side = ground.meter(), SideBySide(adapter, ground.move.drift, ground.move.new)
    found = search(lambda point: _measure(meter, side, point), TRIALS, ground.seed)
    return settle(ground, adapter, meter, [Trial((m.point,), m) for m in found])


def _measure(meter: Meter, side: SideBySide, point: Point) -> Measured:
    side.move_to(point)
    return meter.measure(point, side.factors)


def _transport(ground: Ground) -> LoraAdapter:
    old, new = ground.move.old, ground.move.new
    way = Transport(old, new, ground.adapter, ground.splits, lambda: ground.replay, ground.yardstick, ground.log)
    return way.run().adapter


WAYS: Mapping[str, Callable[[Ground], Start]] = {
    "Copy, no search": copy,
    "grid": grid,
    "GP + EI": searched,
    "what siblings chose": siblings,
    "Transport": transported,
    "GP + EI on Transport": searched_from_transport,
}
