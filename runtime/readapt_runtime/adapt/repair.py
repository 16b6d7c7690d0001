"""One adapter over one base move: climbs the ladder until a variant passes.

In: both bases in memory, the drift between them, the adapter on the old base, its examples and settings. Out: the
passing adapter, or none, with the results of every rung and the evidence. Next: the Job publishes it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from pydantic import TypeAdapter

from readapt_api.artifacts import Origin
from readapt_api.contract import Digest
from readapt_api.digest import hex_of
from readapt_api.jobs import AdaptationSettings, GateSettings, RungResult
from readapt_runtime.adapt import gate, ladder
from readapt_runtime.adapt.base import LoadedBase
from readapt_runtime.adapt.comparison import AnswerCache, AnswerStream, Comparison, Pair, compare
from readapt_runtime.adapt.data import Splits
from readapt_runtime.adapt.evidence import circumstances
from readapt_runtime.adapt.factors import attached, side_factors
from readapt_runtime.adapt.journal import Journal
from readapt_runtime.adapt.relora import Found, Relora
from readapt_runtime.adapt.retention import (
    Retention,
    Yardstick,
    cached_replay,
    cached_yardstick,
    floor,
    retention,
    text_losses,
)
from readapt_runtime.lora_format import LoraAdapter
from readapt_runtime.lowrank import LowRank
from readapt_runtime.progress import Log
from readapt_runtime.store import Store


@dataclass(frozen=True, slots=True)
class Move:
    """Two versions of a base in memory and the low-rank drift from old to new."""

    old: LoadedBase
    new: LoadedBase
    drift: Mapping[str, LowRank]


@dataclass(frozen=True, slots=True)
class Item:
    """One adapter to carry over."""

    name: str
    adapter: LoraAdapter
    """On the old base; what the gate compares with."""
    reference: Digest
    splits: Splits
    data: Digest
    adaptation: AdaptationSettings
    gate: GateSettings
    input_hash: Digest
    """Names the work, wherever it is done and whatever it is grouped with."""

    @property
    def seed(self) -> int:
        """Equal work is done with equal dice."""
        return int(hex_of(self.input_hash)[:6], 16)


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


_RETENTION: TypeAdapter[Retention | None] = TypeAdapter(Retention | None)


def repair(move: Move, item: Item, store: Store, log: Log) -> Repaired:
    """Tries rung after rung, from where an earlier run of the same work was. Raises BadData, Misfit, Diverged.

    Whoever keeps the result then drops the progress of ``item.input_hash``.
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
    parameters: dict[str, object] = field(default_factory=dict)
    details: dict[str, object] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self) -> Repaired:
        begin = time.monotonic() - self.journal.earlier_seconds
        policy = self.item.adaptation.policy
        adapter = self.item.adapter
        if Origin.RELORA in ladder.RUNGS[policy]:
            self.item.splits.require_tuning()
        with self._timed("yardstick"):
            yardstick = cached_yardstick(self.store, self.move.old, self.move.new)
            of_copy = self.journal.once("retention of Copy", _RETENTION, lambda: self._retention(yardstick, adapter))
        while (origin := ladder.next_rung(policy, self.rungs)) is not None:
            rung_begin = time.monotonic()
            kept = of_copy
            if origin is Origin.RELORA:
                found = self._relora(yardstick, of_copy)
                adapter, kept = found.adapter, found.retention
            with self._timed(f"gate {origin}"):
                comparison = self._compare(adapter, origin)
            self._record(origin, comparison, kept, of_copy, time.monotonic() - rung_begin)
        passed = ladder.passes(self.rungs[-1])
        seconds = time.monotonic() - begin
        return Repaired(
            adapter if passed else None,
            self.rungs[-1].origin if passed else None,
            tuple(self.rungs),
            seconds,
            self.parameters,
            self._evidence(yardstick),
        )

    def _relora(self, yardstick: Yardstick, of_copy: Retention | None) -> Found:
        item = self.item
        stopping = item.splits.stopping
        old = AnswerStream(
            Pair(self.move.old, item.adapter), stopping, item.splits.choices, self._cache("stopping")
        ).first(len(stopping))
        relora = Relora(
            base=self.move.new,
            adapter=item.adapter,
            drift=self.move.drift,
            splits=item.splits,
            settings=item.adaptation,
            yardstick=yardstick,
            of_copy=of_copy,
            reference_score=sum(old) / len(old),
            # Without a measurable move of the base there is nothing to keep.
            replay=lambda: cached_replay(self.store, self.move.new).tokens if yardstick.measurable else (),
            seed=item.seed,
            copy_may_win=not self.rungs,
            log=self.log,
            timed=self._timed,
            journal=self.journal,
        )
        found = relora.run()
        self.details["relora"] = found.evidence
        self.parameters = {"alpha": found.start.alpha, "beta": found.start.beta, "tuningSteps": found.steps}
        return found

    def _compare(self, adapter: LoraAdapter, origin: Origin) -> Comparison:
        item, examples = self.item, self.item.splits.gate
        begin = 0.0 if origin is Origin.COPIED else 0.8
        rule = gate.Rule.for_policy(
            confidence=float(item.gate.confidence),
            margin=float(item.gate.max_regression),
            samples=min(item.gate.max_samples, len(examples)),
            rungs=len(ladder.RUNGS[item.adaptation.policy]),
        )
        asked = AnswerCache.of(self.store, f"sha256:{adapter.fingerprint}", self.move.new, item.data, "gate")
        return compare(
            AnswerStream(Pair(self.move.old, item.adapter), examples, item.splits.choices, self._cache("gate")),
            AnswerStream(Pair(self.move.new, adapter), examples, item.splits.choices, asked),
            rule,
            lambda seen: self.log.progress(begin + 0.2 * seen, f"comparing {origin} with the old pair"),
        )

    def _record(
        self, origin: Origin, found: Comparison, kept: Retention | None, of_copy: Retention | None, seconds: float
    ) -> None:
        least = floor(float(self.item.adaptation.min_retention), of_copy)
        result = RungResult(
            origin=origin,
            verdict=ladder.VERDICTS[found.decision],
            score=found.score,
            reference=found.reference,
            interval=found.interval,
            samples=found.counts.samples,
            samples_needed=found.samples_needed,
            retention=None if kept is None else kept.value,
            retention_floor=least,
            seconds=seconds,
        )
        said = ladder.message(result, float(self.item.gate.max_regression))
        self.rungs.append(result.model_copy(update={"message": said}))
        self.details[f"gate {origin}"] = {
            "wins": found.counts.wins,
            "losses": found.counts.losses,
            "ties": found.counts.ties,
            "retentionError": None if kept is None else kept.standard_error,
        }
        self.log.info("rung", adapter=self.item.name, verdict=str(result.verdict), message=said)

    def _retention(self, yardstick: Yardstick, adapter: LoraAdapter) -> Retention | None:
        if not yardstick.measurable:
            return None
        with attached(self.move.new.model, side_factors(adapter, self.move.new.dtype)):
            return retention(yardstick, text_losses(self.move.new, yardstick.tokens))

    def _cache(self, part: str) -> AnswerCache:
        return AnswerCache.of(self.store, self.item.reference, self.move.old, self.item.data, part)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        begin = time.monotonic()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.monotonic() - begin

    def _evidence(self, yardstick: Yardstick) -> dict[str, object]:
        splits = self.item.splits
        return {
            "examples": {part: len(getattr(splits, part)) for part in ("train", "search", "stopping", "gate")},
            "leaked": splits.leaked,
            "choices": list(splits.choices),
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
