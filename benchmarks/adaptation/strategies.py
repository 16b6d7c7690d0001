"""Ways to carry one adapter over one base move, each timed to the moment its variant has passed the gate.

All are judged alike: candidates on the stopping examples while they are made, then the paired gate of one rung at the
case's margin. Seconds are those of the process's CPU time, so that what else runs on the machine does not count.
What every way needs once (old pair's answers, the yardstick of retention) is computed before and told apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from readapt_api.adaptation import Metric, Policy
from readapt_api.artifacts import Origin
from readapt_api.digest import digest_of
from readapt_api.jobs import AdaptationSettings, GateSettings
from readapt_runtime.adapt import gate
from readapt_runtime.adapt.checkpoints import Checkpoints
from readapt_runtime.adapt.comparison import AnswerCache, AnswerStream, Pair, compare
from readapt_runtime.adapt.data import Splits
from readapt_runtime.adapt.evidence import circumstances
from readapt_runtime.adapt.exam import Exam
from readapt_runtime.adapt.factors import attached, side_factors
from readapt_runtime.adapt.item import Item, Move
from readapt_runtime.adapt.journal import Journal
from readapt_runtime.adapt.measure import Measure, mean
from readapt_runtime.adapt.repair import repair
from readapt_runtime.adapt.retention import (
    Retention,
    Yardstick,
    cached_replay,
    cached_yardstick,
    retention,
    text_losses,
)
from readapt_runtime.adapt.retrain import blank
from readapt_runtime.adapt.tokens import encode
from readapt_runtime.adapt.tuning import Evaluation, Lessons, Tuning, tune
from readapt_runtime.lora_format import LoraAdapter
from readapt_runtime.progress import Log
from readapt_runtime.store import Store

CONFIDENCE = 0.95
MAX_STEPS = 300
COPY_RATE, SCRATCH_RATE = 3e-4, 1e-3
"""The best of {1e-4, 3e-4, 1e-3} for either on SmolLM2 (measured before the study, at no cost to them in it)."""


@dataclass(frozen=True, slots=True)
class Case:
    """One adapter over one base move."""

    name: str
    move: Move
    adapter: LoraAdapter
    splits: Splits
    seed: int
    margin: float


@dataclass(frozen=True, slots=True)
class Run:
    """What a way came to."""

    seconds: float
    """CPU seconds to the gate's decision."""
    passed: bool
    score: float
    """Accuracy on all examples of the gate."""
    retention: float | None
    curve: tuple[tuple[float, float], ...]
    """(CPU seconds so far, accuracy on the stopping examples) per evaluation."""
    steps: int
    origin: str
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Shared:
    """What is computed once, and what it took."""

    yardstick: Yardstick
    of_copy: Retention | None
    exam: Exam
    old_score: float
    seconds: Mapping[str, float]


class Clock:
    """CPU seconds since it was made."""

    def __init__(self) -> None:
        self._begin = time.process_time()

    def __call__(self) -> float:
        return time.process_time() - self._begin


class Contest:
    """All ways for one case."""

    def __init__(self, case: Case, store: Store, log: Log) -> None:
        self.case = case
        self._store = store
        self._log = log
        self._data = digest_of([case.name])
        self._measure = Measure.of(Metric.ACCURACY, case.splits, case.move.old)
        self.shared = self._prepare()

    def copy(self) -> Run:
        clock = Clock()
        return self._judged(self.case.adapter, clock, (), 0, "Copy")

    def copy_and_tune(self) -> Run:
        return self._tuned(self.case.adapter, COPY_RATE, "Copy+tuning")

    def scratch(self) -> Run:
        return self._tuned(blank(self.case.adapter), SCRATCH_RATE, "scratch")

    def ours(self) -> Run:
        return self._repaired(Policy.AUTO)

    def refresh(self) -> Run:
        return self._repaired(Policy.REFRESH)

    def _tuned(self, start: LoraAdapter, rate: float, name: str) -> Run:
        """Plain fine-tuning: no anchor, no replay, no constraint; stopped and chosen as ours is."""
        clock, curve = Clock(), []
        checkpoints = self._checkpoints(name)

        def evaluate(step: int, adapter: LoraAdapter, before: Sequence[Evaluation]) -> Evaluation:
            found = checkpoints.evaluate(step, adapter, before)
            curve.append((clock(), found.score))
            return found

        first = evaluate(0, start, ())
        settings = Tuning(
            max_steps=MAX_STEPS, learning_rate=rate, batch_size=8, seed=self.case.seed, strong=0.0, weak=0.0, replay=0.0
        )
        lessons = Lessons(encode(self.case.move.new, self.case.splits.train))
        found = tune(self.case.move.new, start, first, lessons, settings, evaluate)
        return self._judged(found.adapter, clock, tuple(curve), found.best.step, name)

    def _repaired(self, policy: Policy) -> Run:
        case, clock = self.case, Clock()
        item = Item(
            name=case.name,
            adapter=case.adapter,
            reference=self._data,
            splits=case.splits,
            data=self._data,
            adaptation=AdaptationSettings(policy=policy, max_steps=MAX_STEPS),
            gate=GateSettings(max_regression=str(case.margin), confidence=str(CONFIDENCE)),
            input_hash=digest_of([case.name, policy.value, case.seed]),
        )
        found = repair(case.move, item, self._store, self._log)
        self._store.drop_progress(item.input_hash)
        seconds = clock()
        adapter = case.adapter if found.adapter is None else found.adapter
        origin = Origin.COPIED if found.origin is None else found.origin
        details = found.evidence.get(origin.value.lower(), {})
        curve = tuple((0.0, row["score"]) for row in details.get("curve", ())) if isinstance(details, dict) else ()
        return Run(
            seconds=seconds,
            passed=found.adapter is not None,
            score=self._score(adapter),
            retention=self._retention(adapter),
            curve=curve,
            steps=int(str(found.parameters.get("tuningSteps", 0))),
            origin=origin.value,
            parts=found.evidence["seconds"],  # type: ignore[arg-type]
        )

    def _judged(
        self, adapter: LoraAdapter, clock: Clock, curve: tuple[tuple[float, float], ...], steps: int, name: str
    ) -> Run:
        case, examples = self.case, self.case.splits.gate
        rule = gate.Rule.for_policy(CONFIDENCE, case.margin, len(examples), rungs=1)
        new = AnswerStream(Pair(case.move.new, adapter), examples, self._measure.form)
        found = compare(self._old("gate"), new, self._measure, rule, lambda _: None)
        seconds = clock()
        passed = found.decision is gate.Decision.PASS
        return Run(seconds, passed, self._score(adapter), self._retention(adapter), curve, steps, name)

    def _prepare(self) -> Shared:
        case, seconds, clock = self.case, {}, Clock()
        yardstick = cached_yardstick(self._store, case.move.old, case.move.new)
        seconds["yardstick"] = clock()
        if yardstick.measurable:
            cached_replay(self._store, case.move.new)
        seconds["replay"] = clock() - seconds["yardstick"]
        clock = Clock()
        old = self._old("gate").all()
        exam = Exam(self._measure, self._old("stopping"), case.margin)
        exam.old.all()
        seconds["old answers"] = clock()
        score = mean(self._measure.scores(case.splits.gate, old, old))
        return Shared(yardstick, self._retained(case.adapter, yardstick), exam, score, seconds)

    def _old(self, part: str) -> AnswerStream:
        case = self.case
        cache = AnswerCache.of(self._store, self._data, case.move.old, self._data, part, self._measure.form)
        return AnswerStream(Pair(case.move.old, case.adapter), getattr(case.splits, part), self._measure.form, cache)

    def _checkpoints(self, name: str) -> Checkpoints:
        """Unconstrained: the best score is kept, whatever is left of the new base."""
        new = self.case.move.new
        work = digest_of([self.case.name, name, self.case.seed])
        journal = Journal(self._store, work, circumstances(new), self._log)
        self._store.drop_progress(work)
        return Checkpoints(
            base=new,
            exam=self.shared.exam,
            yardstick=self.shared.yardstick,
            of_copy=None,
            min_retention=0.0,
            max_steps=MAX_STEPS,
            journal=journal,
            log=self._log,
        )

    def _score(self, adapter: LoraAdapter) -> float:
        examples = self.case.splits.gate
        answers = AnswerStream(Pair(self.case.move.new, adapter), examples, self._measure.form).all()
        return mean(self._measure.scores(examples, answers, answers))

    def _retention(self, adapter: LoraAdapter) -> float | None:
        found = self._retained(adapter, self.shared.yardstick)
        return None if found is None else found.value

    def _retained(self, adapter: LoraAdapter, yardstick: Yardstick) -> Retention | None:
        new = self.case.move.new
        with attached(new.model, side_factors(adapter, new.dtype)):
            return retention(yardstick, text_losses(new, yardstick.tokens))


WAYS: Mapping[str, Callable[[Contest], Run]] = {
    "Copy": Contest.copy,
    "scratch": Contest.scratch,
    "Copy+tuning": Contest.copy_and_tune,
    "ours": Contest.ours,
    "Refresh": Contest.refresh,
}
