"""The ReLoRA rung: from the old adapter to a candidate for the gate.

search α and β (search examples) -> fold the best few -> choose the start -> good enough on the stopping examples? ->
else tune. The gate's examples are not looked at here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field

from pydantic import TypeAdapter

from readapt_api.jobs import AdaptationSettings
from readapt_runtime.adapt.base import LoadedBase
from readapt_runtime.adapt.checkpoints import Checkpoints
from readapt_runtime.adapt.data import Splits
from readapt_runtime.adapt.factors import SideFactors, side_factors
from readapt_runtime.adapt.journal import Journal
from readapt_runtime.adapt.retention import Retention, Yardstick
from readapt_runtime.adapt.search import (
    COPY,
    Measured,
    Point,
    SideBySide,
    best_points,
    choose_start,
    fold,
    kept_energy,
    search,
)
from readapt_runtime.adapt.tokens import encode
from readapt_runtime.adapt.trial import Meter
from readapt_runtime.adapt.tuning import Evaluation, Lessons, Tuning, tune
from readapt_runtime.lora_format import LoraAdapter
from readapt_runtime.lowrank import LowRank
from readapt_runtime.progress import Log

_FOLDED = 2
"""How many of the best points are folded and scored again."""
_MEASURED = TypeAdapter(Measured)


@dataclass(frozen=True, slots=True)
class Found:
    """The rung's one candidate."""

    adapter: LoraAdapter
    retention: Retention | None
    start: Point
    steps: int
    """Of tuning; 0 when the start was good enough."""
    evidence: dict[str, object]


@dataclass(frozen=True, slots=True)
class Begun:
    """A starting point, graded."""

    adapter: LoraAdapter
    start: Point
    first: Evaluation
    evidence: dict[str, object]


@dataclass(slots=True)
class Relora:
    """Everything the rung needs; ``run`` is its life."""

    base: LoadedBase
    adapter: LoraAdapter
    drift: Mapping[str, LowRank]
    splits: Splits
    settings: AdaptationSettings
    yardstick: Yardstick
    of_copy: Retention | None
    checkpoints: Checkpoints
    replay: Callable[[], Sequence[Sequence[int]]]
    """Text of the new base to learn from; drawn only when tuning is needed."""
    seed: int
    copy_may_win: bool
    """Whether Copy itself, untuned, may be the candidate: not when the gate has already refused it."""
    log: Log
    timed: Callable[[str], AbstractContextManager[None]]
    journal: Journal
    _meter: Meter = field(init=False)

    def __post_init__(self) -> None:
        rows, least = encode(self.base, self.splits.search), float(self.settings.min_retention)
        self._meter = Meter(self.base, rows, self.yardstick, least, self.of_copy)

    def run(self) -> Found:
        """Searches, folds, and tunes if it must. Raises Diverged."""
        begun = self.begin()
        first, start = begun.first, begun.start
        evidence = {**begun.evidence, "target": self.checkpoints.exam.target}
        if first.ready and (start != COPY or self.copy_may_win):
            return Found(
                begun.adapter, first.retention, start, 0, {**evidence, "tuned": False, "curve": [asdict(first)]}
            )
        with self.timed("tuning"):
            lessons, evaluate = Lessons(encode(self.base, self.splits.train), self.replay()), self.checkpoints.evaluate
            tuned = tune(self.base, begun.adapter, first, lessons, self._tuning(), evaluate, self.journal)
        curve = [asdict(e) for e in tuned.curve]
        evidence |= {"tuned": True, "curve": curve, "trainLosses": list(tuned.train_losses), "best": tuned.best.step}
        return Found(tuned.adapter, tuned.best.retention, start, tuned.best.step, evidence)

    def begin(self) -> Begun:
        """Where tuning starts from: what the search found, else Copy. Raises Diverged."""
        with self.timed("search"):
            trials, start = self._search()
        adapter = fold(self.adapter, self.drift, start.point)
        with self.timed("evaluation"):
            first = self.checkpoints.evaluate(0, adapter, ())
            if not first.feasible and start.point != COPY:
                # The part of the text that the search saw was kinder than the whole: Copy always keeps the floor.
                start, adapter = self._measured("folded", COPY, self._side(self.adapter)), self.adapter
                first = self.checkpoints.evaluate(0, adapter, (first,))
        evidence: dict[str, object] = {
            "trials": [_trial(t) for t in trials],
            "start": {**_trial(start), "keptEnergy": kept_energy(self.adapter, self.drift, start.point)},
        }
        return Begun(adapter, start.point, first, evidence)

    def _search(self) -> tuple[list[Measured], Measured]:
        shares = iter(0.2 + 0.2 * n / self.settings.trials for n in range(self.settings.trials))
        side = SideBySide(self.adapter, self.drift, self.base)

        def evaluate(point: Point) -> Measured:
            self.log.progress(next(shares), "searching for a starting point")
            side.move_to(point)
            return self._measured("trial", point, side.factors)

        trials = search(evaluate, self.settings.trials, self.seed)
        folded = [
            self._measured("folded", point, self._side(fold(self.adapter, self.drift, point)))
            for point in best_points(trials, _FOLDED)
        ]
        return trials, choose_start(trials[0], folded)

    def _measured(self, what: str, point: Point, factors: Mapping[str, SideFactors]) -> Measured:
        """Measured now or by an earlier run."""
        measured = self.journal.once(f"{what} {point}", _MEASURED, lambda: self._measure(point, factors))
        self._meter.floor = measured.floor
        return measured

    def _side(self, adapter: LoraAdapter) -> Mapping[str, SideFactors]:
        return side_factors(adapter, self.base)

    def _measure(self, point: Point, factors: Mapping[str, SideFactors]) -> Measured:
        found = self._meter.measure(point, factors)
        self.log.info("trial", alpha=point.alpha, beta=point.beta, loss=found.loss, retention=found.retention)
        return found

    def _tuning(self) -> Tuning:
        return Tuning(
            max_steps=self.settings.max_steps,
            learning_rate=float(self.settings.learning_rate),
            batch_size=self.settings.batch_size,
            seed=self.seed,
        )


def _trial(measured: Measured) -> dict[str, object]:
    return {
        "alpha": measured.point.alpha,
        "beta": measured.point.beta,
        "loss": measured.loss,
        "retention": measured.retention,
        "floor": measured.floor,
    }
