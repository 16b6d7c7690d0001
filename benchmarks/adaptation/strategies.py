"""Ways to carry one adapter over one base move, each timed to the moment its variant has passed the gate.

All are judged alike: candidates on the stopping examples while they are made, then the paired gate at the case's
margin; the ladder of ours divides its error budget over its rungs, the other ways spend theirs on one. Seconds are
those of the process's CPU time, so that what else runs on the machine does not count. What several ways need (old
pair's answers; yardstick and text of the new base, which ours and Refresh use) is computed before, timed apart, and
copied to each way's own store, so that no way finds what another has computed. What is asked of the gate's examples
beyond the gate itself is asked when the seconds of the way have been taken.
"""

from __future__ import annotations

import math
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from stopwatch import Stopwatch
from study_bases import alone

from readapt_api.adaptation import Metric, Policy
from readapt_api.artifacts import Origin
from readapt_api.digest import digest_of
from readapt_api.jobs import AdaptationSettings, GateSettings
from readapt_runtime.adapt import gate
from readapt_runtime.adapt.checkpoints import Checkpoints
from readapt_runtime.adapt.comparison import AnswerCache, AnswerStream, Pair, compare
from readapt_runtime.adapt.data import Example, Splits
from readapt_runtime.adapt.evidence import circumstances
from readapt_runtime.adapt.exam import Exam
from readapt_runtime.adapt.factors import attached, side_factors
from readapt_runtime.adapt.item import Item, Move
from readapt_runtime.adapt.journal import Journal
from readapt_runtime.adapt.measure import Measure, mean
from readapt_runtime.adapt.repair import repair
from readapt_runtime.adapt.retention import Yardstick, cached_replay, cached_yardstick, retention, text_losses
from readapt_runtime.adapt.retrain import blank
from readapt_runtime.adapt.tokens import encode
from readapt_runtime.adapt.tuning import Evaluation, Evenly, Lessons, Tuning, tune
from readapt_runtime.lora_format import LoraAdapter
from readapt_runtime.progress import Log
from readapt_runtime.store import Store

T = TypeVar("T")
CONFIDENCE = 0.95
MAX_STEPS = 300
COPY_RATE, SCRATCH_RATE = 3e-4, 1e-3
"""The best of {1e-4, 3e-4, 1e-3} for either on SmolLM2 (measured before the study, at no cost to them in it)."""
LEAST_UNSEEN = 30
"""Fewer examples say nothing about a margin."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One adapter over one base move."""

    name: str
    move: Move
    adapter: LoraAdapter
    splits: Splits
    seed: int
    margin: float
    metric: Metric = Metric.ACCURACY
    spare: tuple[Example, ...] = ()
    """Test examples that are no part of ``splits``."""
    max_steps: int = MAX_STEPS


@dataclass(frozen=True, slots=True)
class Unseen:
    """A variant that passed, on test examples that its gate had not looked at when it decided."""

    examples: int
    gain: float
    """Mean of the paired differences to the old pair, in the metric's unit; negative is worse."""
    error: float
    """Its standard error."""


@dataclass(frozen=True, slots=True)
class Run:
    """What a way came to."""

    seconds: float
    """CPU seconds to the gate's decision."""
    passed: bool
    score: float
    """On all examples of the gate, of what is served afterwards: the variant that passed, else Copy. So are
    ``retention`` and ``end``."""
    retention: float | None
    begin: float | None
    """Score on the stopping examples of what it starts from; None when Copy alone is studied."""
    end: float | None
    """Score on the stopping examples."""
    curve: tuple[tuple[float, float], ...]
    """(CPU seconds so far, score on the stopping examples) per evaluation."""
    steps: int
    origin: str
    parts: Mapping[str, float] = field(default_factory=dict)
    tested: tuple[tuple[float, float], ...] = ()
    """(CPU seconds so far, score on all examples of the gate) of each checkpoint that was the best so far by the
    stopping examples, whether the gate passes it or not; the start at 0. Of plain tuning alone."""
    unseen: Unseen | None = None
    """None where nothing passed or too few examples are left."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What is computed once, and what it took."""

    yardstick: Yardstick | None
    """None when Copy alone is studied."""
    exam: Exam
    old_score: float
    seconds: Mapping[str, float]
    """CPU seconds: ``yardstick`` and ``replay`` once per base pair, ``old answers`` once per case."""


Seen = tuple[float, LoraAdapter]
"""At which CPU second of a way which checkpoint."""


@dataclass(frozen=True, slots=True)
class _Made:
    """The one candidate of a way."""

    adapter: LoraAdapter
    steps: int = 0
    seen: tuple[Seen, ...] = ()


class Contest:
    """All ways for one case, or Copy alone."""

    def __init__(self, case: Trial, pair: Path, folder: Path, log: Log, copy_alone: bool = False) -> None:
        """``pair`` keeps what belongs to the two bases; ``folder`` is the case's own and is emptied."""
        self.case = case
        self._log = log
        self._data = digest_of([case.name])
        self._measure = Measure.of(case.metric, case.splits, case.move.old)
        self._folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        pair.mkdir(parents=True, exist_ok=True)
        seconds: dict[str, float] = {}
        yardstick = None if copy_alone else self._of_pair(pair, seconds)
        shutil.copytree(pair, folder / "shared")
        self._store = Store(folder / "shared")
        self.shared = self._prepare(yardstick, seconds)
        self.of_copy = self._retention(case.adapter)

    def copy(self) -> Run:
        return self._judged("Copy", lambda watch, store: _Made(self.case.adapter), begin=self.case.adapter)

    def copy_and_tune(self) -> Run:
        return self._tuned("Copy+tuning", self.case.adapter, COPY_RATE)

    def scratch(self) -> Run:
        return self._tuned("scratch", blank(self.case.adapter), SCRATCH_RATE, Evenly)

    def relora(self) -> Run:
        """Search and anchored tuning from Copy, without the rungs before and after them."""
        return self._repaired(Policy.RELORA)

    def ours(self) -> Run:
        return self._repaired(Policy.AUTO)

    def refresh(self) -> Run:
        return self._repaired(Policy.REFRESH)

    def _retention(self, adapter: LoraAdapter) -> float | None:
        """None where it cannot be measured or nobody asked."""
        new, yardstick = self.case.move.new, self.shared.yardstick
        if yardstick is None or not yardstick.measurable:
            return None
        with attached(new.model, side_factors(adapter, new)):
            found = retention(yardstick, text_losses(new, yardstick.tokens))
        return None if found is None else found.value

    def _tuned(self, name: str, start: LoraAdapter, rate: float, kind: type[Tuning] = Tuning) -> Run:
        """Plain fine-tuning where the start is not good enough: no anchor, no replay, no constraint.

        It is stopped and its checkpoint chosen as ours is.
        """
        new, seed = self.case.move.new, self.case.seed
        settings = kind(
            max_steps=self.case.max_steps,
            learning_rate=rate,
            batch_size=8,
            seed=seed,
            strong=0.0,
            weak=0.0,
            replay=0.0,
        )

        def make(watch: Stopwatch, store: Store) -> _Made:
            checkpoints, seen = self._checkpoints(name, store, watch), [(0.0, start)]
            first = checkpoints.evaluate(0, start, ())
            if first.ready:
                return _Made(start, 0, tuple(seen))

            def evaluate(step: int, adapter: LoraAdapter, before: Sequence[Evaluation]) -> Evaluation:
                found = checkpoints.evaluate(step, adapter, before)
                if found.order > max(each.order for each in before):
                    seen.append((watch.seconds(), adapter))
                return found

            lessons = Lessons(encode(new, self.case.splits.train))
            tuned = tune(new, start, first, lessons, settings, evaluate)
            return _Made(tuned.adapter, tuned.best.step, tuple(seen))

        return self._judged(name, make, begin=start)

    def _repaired(self, policy: Policy) -> Run:
        case = self.case
        item = Item(
            name=case.name,
            adapter=case.adapter,
            reference=self._data,
            splits=case.splits,
            data=self._data,
            adaptation=AdaptationSettings(policy=policy, max_steps=case.max_steps),
            gate=GateSettings(metric=case.metric, max_regression=str(case.margin), confidence=str(CONFIDENCE)),
            input_hash=digest_of([case.name, policy.value, case.seed]),
        )
        with self._own_store(policy.value) as store:
            watch = Stopwatch(self._log)
            found = repair(case.move, item, store, watch)
            seconds = watch.seconds()
            return Run(
                seconds=seconds,
                passed=found.adapter is not None,
                **self._served(found.adapter, store, found.rungs[-1].samples),
                begin=self._stopping(case.adapter),
                curve=tuple(watch.curve),
                steps=int(str(found.parameters.get("tuningSteps", 0))),
                origin=(found.origin or Origin.COPIED).value,
                parts=found.evidence["seconds"],  # type: ignore[arg-type]
            )

    def _judged(self, name: str, make: Callable[[Stopwatch, Store], _Made], begin: LoraAdapter) -> Run:
        """Makes the one candidate of a way and asks the gate."""
        rule = gate.Rule.for_policy(CONFIDENCE, self.case.margin, len(self.case.splits.gate), rungs=1)
        with self._own_store(name) as store:
            watch = Stopwatch(self._log)
            made = make(watch, store)
            answers = self._answers(made.adapter, store)
            found = compare(self._old("gate"), answers, self._measure, rule, lambda _: None)
            seconds, passed = watch.seconds(), found.decision is gate.Decision.PASS
            return Run(
                seconds=seconds,
                passed=passed,
                **self._served(made.adapter if passed else None, store, found.evidence.samples),
                begin=self._stopping(begin),
                curve=tuple(watch.curve),
                steps=made.steps,
                origin=name,
                tested=tuple((second, self._score(self._answers(a, store))) for second, a in made.seen),
            )

    def _served(self, passed: LoraAdapter | None, store: Store, samples: int) -> dict[str, Any]:
        """What a ``Run`` says of the variant that passed after ``samples`` examples, or else of Copy."""
        adapter = self.case.adapter if passed is None else passed
        return {
            "score": self._score(self._answers(adapter, store)),
            "retention": self._retention(adapter),
            "end": self._stopping(adapter),
            "unseen": None if passed is None else self._unseen(passed, store, samples),
        }

    def _unseen(self, adapter: LoraAdapter, store: Store, samples: int) -> Unseen | None:
        """On what of the gate's examples was left after ``samples``, and on the spare ones."""
        case, form = self.case, self._measure.form
        examples = (*case.splits.gate[samples:], *case.spare)
        if len(examples) < LEAST_UNSEEN:
            return None
        old = [*self._old("gate").all()[samples:], *self._old("spare").all()]
        spare = AnswerStream(Pair(case.move.new, adapter), case.spare, form).all()
        new = [*self._answers(adapter, store).all()[samples:], *spare]
        scores = (self._measure.scores(examples, answers, old) for answers in (new, old))
        gains = [case.metric.gain(after, before) for after, before in zip(*scores, strict=True)]
        return Unseen(len(gains), statistics.fmean(gains), statistics.stdev(gains) / math.sqrt(len(gains)))

    def _of_pair(self, pair: Path, seconds: dict[str, float]) -> Yardstick:
        store, old, new = Store(pair), self.case.move.old, self.case.move.new
        with alone(pair / ".lock"):
            found, seconds["yardstick"] = timed_once(pair / "yardstick.s", lambda: cached_yardstick(store, old, new))
            if found.measurable:
                _, seconds["replay"] = timed_once(pair / "replay.s", lambda: cached_replay(store, new))
        return found

    def _prepare(self, yardstick: Yardstick | None, seconds: dict[str, float]) -> Shared:
        watch = Stopwatch(self._log)
        old = self._old("gate")
        old.all()
        exam = Exam(self._measure, self._old("stopping"), self.case.margin)
        if yardstick is not None:
            exam.old.all()
        return Shared(yardstick, exam, self._score(old), {**seconds, "old answers": watch.seconds()})

    def _old(self, part: str) -> AnswerStream:
        case = self.case
        cache = AnswerCache.of(self._store, self._data, case.move.old, self._data, part, self._measure.form)
        examples = case.spare if part == "spare" else getattr(case.splits, part)
        return AnswerStream(Pair(case.move.old, case.adapter), examples, self._measure.form, cache)

    def _answers(self, adapter: LoraAdapter, store: Store) -> AnswerStream:
        """The new pair's to the gate's examples, where ``repair`` keeps them too."""
        new, form, examples = self.case.move.new, self._measure.form, self.case.splits.gate
        cache = AnswerCache.of(store, f"sha256:{adapter.fingerprint}", new, self._data, "gate", form)
        return AnswerStream(Pair(new, adapter), examples, form, cache)

    def _checkpoints(self, name: str, store: Store, watch: Stopwatch) -> Checkpoints:
        """Unconstrained: the best score is kept, whatever is left of the new base."""
        if self.shared.yardstick is None:
            raise ValueError(f"{name} needs a contest of all ways")
        new = self.case.move.new
        return Checkpoints(
            base=new,
            exam=self.shared.exam,
            yardstick=self.shared.yardstick,
            of_copy=None,
            min_retention=0.0,
            max_steps=self.case.max_steps,
            journal=Journal(store, digest_of([self.case.name, name]), circumstances(new), self._log),
            log=watch,
        )

    def _score(self, answers: AnswerStream) -> float:
        given = answers.all()
        return mean(self._measure.scores(answers.examples, given, given))

    def _stopping(self, adapter: LoraAdapter) -> float | None:
        """Score on the stopping examples; asked once per adapter."""
        if self.shared.yardstick is None:
            return None
        new, form, examples = self.case.move.new, self._measure.form, self.case.splits.stopping
        cache = AnswerCache.of(self._store, f"sha256:{adapter.fingerprint}", new, self._data, "stopping", form)
        return self._score(AnswerStream(Pair(new, adapter), examples, form, cache))

    @contextmanager
    def _own_store(self, name: str) -> Iterator[Store]:
        """A copy of what is shared, for one way; gone afterwards."""
        folder = self._folder / name
        shutil.copytree(self._folder / "shared", folder)
        try:
            yield Store(folder)
        finally:
            shutil.rmtree(folder)


def timed_once(file: Path, make: Callable[[], T]) -> tuple[T, float]:
    """What is made, and the CPU seconds that it took when it was made first."""
    begin = time.process_time()
    made = make()
    if not file.is_file():
        file.write_text(str(time.process_time() - begin), encoding="utf-8")
    return made, float(file.read_text(encoding="utf-8"))


WAYS: Mapping[str, Callable[[Contest], Run]] = {
    "Copy": Contest.copy,
    "scratch": Contest.scratch,
    "Copy+tuning": Contest.copy_and_tune,
    "ReLoRA": Contest.relora,
    "ours": Contest.ours,
    "Refresh": Contest.refresh,
}
