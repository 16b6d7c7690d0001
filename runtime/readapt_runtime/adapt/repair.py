"""One adapter over one base move: climbs the ladder until a variant passes.

In: both bases in memory, the drift between them, the adapter on the old base, its examples and settings. Out: the
passing adapter, or none, with the results of every rung and the evidence. Next: the Job publishes it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

from pydantic import TypeAdapter

from readapt_api.artifacts import Origin
from readapt_api.jobs import RungResult
from readapt_runtime.adapt import gate, ladder
from readapt_runtime.adapt.checkpoints import Candidate
from readapt_runtime.adapt.comparison import AnswerCache, AnswerStream, Comparison, Pair, compare
from readapt_runtime.adapt.data import Example
from readapt_runtime.adapt.evidence import circumstances
from readapt_runtime.adapt.exam import Exam
from readapt_runtime.adapt.factors import attached, side_factors
from readapt_runtime.adapt.item import Item, Move
from readapt_runtime.adapt.journal import Journal
from readapt_runtime.adapt.measure import Measure
from readapt_runtime.adapt.retention import (
    Retention,
    Yardstick,
    cached_yardstick,
    floor,
    require_sound,
    retention,
    text_losses,
)
from readapt_runtime.adapt.rungs import Candidates
from readapt_runtime.adapt.share import Share
from readapt_runtime.adapt.suitability import Effect, require_effect, require_room
from readapt_runtime.continual.blocks import Learned
from readapt_runtime.drift.overlap import overlap
from readapt_runtime.drift.prediction import facts
from readapt_runtime.lora_format import LoraAdapter
from readapt_runtime.progress import Log
from readapt_runtime.store import Store


@dataclass(frozen=True, slots=True)
class Repaired:
    """What came of it; ``adapter`` and ``origin`` are None when the ladder is exhausted."""

    adapter: LoraAdapter | None
    origin: Origin | None
    rungs: tuple[RungResult, ...]
    seconds: float
    parameters: dict[str, object]
    """How the last rung made its candidate: α, β, whether it was tuned; empty for Copy."""
    evidence: dict[str, object]
    learned: Learned | None = None
    """The blocks behind ``adapter``, where it is a sum of them."""


_RETENTION: TypeAdapter[Retention | None] = TypeAdapter(Retention | None)
_EFFECT: TypeAdapter[Effect | None] = TypeAdapter(Effect | None)


def repair(move: Move, item: Item, store: Store, log: Log) -> Repaired:
    """Tries rung after rung, from where an earlier run of the same work was.

    Raises BadData, Misfit, NoEffect, Diverged. Whoever keeps the result then drops the progress of ``item.input_hash``.
    """
    journal = Journal(store, item.input_hash, circumstances(move.new), log)
    return _Climb(move, item, store, journal, log).run()


@dataclass(slots=True)
class _Climb:
    move: Move
    item: Item
    store: Store
    journal: Journal
    log: Log
    rungs: list[RungResult] = field(default_factory=list)
    details: dict[str, object] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self) -> Repaired:
        begin = time.monotonic() - self.journal.earlier_seconds
        item = self.item
        ways = ladder.rungs_of(item.adaptation.policy, item.splits, item.learned is not None)
        require_room(self.move.new, item.splits)
        measure = Measure.of(item.gate.metric, item.splits, self.move.old)
        exam = Exam(measure, self._old(item.splits.stopping, measure, "stopping"), float(item.gate.max_regression))
        with self._timed("effect"):
            pair = Pair(self.move.old, item.adapter)
            effect = self.journal.once("effect", _EFFECT, lambda: require_effect(pair, item.splits, exam))
        with self._timed("forecast"):
            self.details["forecast"] = facts(overlap(item.adapter, self.move.drift))
        with self._timed("yardstick"):
            yardstick = cached_yardstick(self.store, self.move.old, self.move.new)
            of_copy = self.journal.once("retention of Copy", _RETENTION, lambda: self._retention_of_copy(yardstick))
        candidates = Candidates(self.move, item, self.store, exam, yardstick, of_copy, self._timed, self.journal)
        candidate = Candidate(item.adapter, of_copy)
        while (origin := ladder.next_rung(ways, self.rungs)) is not None:
            share = Share(self.log, len(self.rungs) / len(ways), 1 / len(ways))
            rung_begin = time.monotonic()
            candidate = candidates.make(origin, share, first=not self.rungs)
            with self._timed(f"gate {origin}"):
                comparison = self._compare(candidate.adapter, origin, measure, ways, share)
            self._record(origin, comparison, candidate, of_copy, time.monotonic() - rung_begin)
        passed = ladder.passes(self.rungs[-1])
        return Repaired(
            candidate.adapter if passed else None,
            self.rungs[-1].origin if passed else None,
            tuple(self.rungs),
            time.monotonic() - begin,
            candidate.parameters,
            self._evidence(yardstick, effect),
            candidate.learned if passed else None,
        )

    def _compare(
        self, adapter: LoraAdapter, origin: Origin, measure: Measure, ways: Sequence[Origin], log: Log
    ) -> Comparison:
        settings, examples = self.item.gate, self.item.splits.gate
        rule = gate.Rule.for_policy(
            confidence=float(settings.confidence),
            margin=float(settings.max_regression),
            samples=min(settings.max_samples, len(examples)),
            rungs=len(ways),
            last=origin is ways[-1],
        )
        new, asked = self.move.new, f"sha256:{adapter.fingerprint}"
        cache = AnswerCache.of(self.store, asked, new, self.item.data, "gate", measure.form)
        return compare(
            self._old(examples, measure, "gate"),
            AnswerStream(Pair(new, adapter), examples, measure.form, cache),
            measure,
            rule,
            lambda seen: log.progress(0.8 + 0.2 * seen, f"comparing {origin} with the old pair"),
        )

    def _record(
        self, origin: Origin, found: Comparison, candidate: Candidate, of_copy: Retention | None, seconds: float
    ) -> None:
        kept = candidate.retention
        result = RungResult(
            origin=origin,
            verdict=ladder.VERDICTS[found.decision],
            metric=self.item.gate.metric,
            score=found.score,
            reference=found.reference,
            interval=found.interval,
            samples=found.evidence.samples,
            samples_left=found.samples_left,
            samples_needed=found.samples_needed,
            retention=None if kept is None else kept.value,
            retention_floor=floor(float(self.item.adaptation.min_retention), of_copy),
            seconds=seconds,
        )
        said = ladder.message(result, float(self.item.gate.max_regression))
        self.rungs.append(result.model_copy(update={"message": said}))
        self.details[origin.value.lower()] = candidate.evidence
        error = None if kept is None else kept.standard_error
        self.details[f"gate {origin}"] = {**found.evidence.facts(), "retentionError": error}
        self.log.info("rung", adapter=self.item.name, verdict=str(result.verdict), message=said)

    def _retention_of_copy(self, yardstick: Yardstick) -> Retention | None:
        new = self.move.new
        if not yardstick.measurable:
            return None
        with attached(new.model, side_factors(self.item.adapter, new)):
            losses = text_losses(new, yardstick.tokens)
        require_sound(losses, "with the adapter the new base")
        return retention(yardstick, losses)

    def _old(self, examples: tuple[Example, ...], measure: Measure, part: str) -> AnswerStream:
        """The old pair's answers, which are kept."""
        item, old = self.item, self.move.old
        cache = AnswerCache.of(self.store, item.reference, old, item.data, part, measure.form)
        return AnswerStream(Pair(old, item.adapter), examples, measure.form, cache)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        begin = time.monotonic()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.monotonic() - begin

    def _evidence(self, yardstick: Yardstick, effect: Effect | None) -> dict[str, object]:
        splits = self.item.splits
        return {
            "examples": {
                part: len(getattr(splits, part)) for part in ("train", "search", "stopping", "gate", "inputs")
            },
            "leaked": splits.leaked,
            "repeated": splits.repeated,
            "choices": list(splits.choices),
            "metric": self.item.gate.metric.value,
            "effect": None if effect is None else asdict(effect),
            "retention": {
                "oldLoss": sum(yardstick.old_losses) / len(yardstick.old_losses),
                "newLoss": sum(yardstick.new_losses) / len(yardstick.new_losses),
                "measurable": yardstick.measurable,
                "seed": yardstick.seed,
            },
            "seconds": self.seconds | {"earlier runs": self.journal.earlier_seconds},
            "rungs": [rung.to_wire() for rung in self.rungs],
            **self.details,
        }
