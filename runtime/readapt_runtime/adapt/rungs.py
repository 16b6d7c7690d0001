"""What each rung of the ladder offers to the gate.

In: one adapter over one base move. Out: a ``Candidate`` per rung, made when its turn has come; a later rung may build
on an earlier one. The gate's examples are not looked at here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from pydantic import TypeAdapter

from readapt_api.adaptation import Metric
from readapt_api.artifacts import Origin
from readapt_runtime.adapt.checkpoints import Candidate, Checkpoints
from readapt_runtime.adapt.comparison import AnswerCache, Pair
from readapt_runtime.adapt.data import Splits
from readapt_runtime.adapt.exam import Exam
from readapt_runtime.adapt.factors import attached, side_factors
from readapt_runtime.adapt.forms import Form, form_of
from readapt_runtime.adapt.item import Item, Move
from readapt_runtime.adapt.journal import Journal
from readapt_runtime.adapt.refresh import Refresh
from readapt_runtime.adapt.relora import Relora
from readapt_runtime.adapt.retention import Retention, Yardstick, cached_replay, floor, holds, retention, text_losses
from readapt_runtime.adapt.retrain import RATES, Retrain
from readapt_runtime.adapt.share import Share
from readapt_runtime.adapt.teacher import Teacher
from readapt_runtime.adapt.tokens import Encoded, encode, mean_losses
from readapt_runtime.adapt.transported import Transport
from readapt_runtime.adapt.tuning import Evenly, Tuning
from readapt_runtime.continual.blocks import Learned, fold
from readapt_runtime.continual.refit import gains_of, refit
from readapt_runtime.lora_format import LoraAdapter
from readapt_runtime.progress import Log
from readapt_runtime.store import Store

_MAGNITUDES = TypeAdapter(dict[str, list[float]])


@dataclass(slots=True)
class Candidates:
    """Makes them."""

    move: Move
    item: Item
    store: Store
    exam: Exam
    yardstick: Yardstick
    of_copy: Retention | None
    timed: Callable[[str], AbstractContextManager[None]]
    journal: Journal
    _transported: Candidate | None = None
    """What the Transport rung came to, if its turn has been."""
    _relora: LoraAdapter | None = None
    """What the ReLoRA rung came to, if its turn has been."""

    def make(self, origin: Origin, log: Log, first: bool) -> Candidate:
        """``first``: no rung was before it. ``log`` hears progress from 0 to 0.8, the rest is the gate's.

        Raises BadData, Diverged.
        """
        match origin:
            case Origin.REFITTED if self.item.learned is not None:
                return self._refit(self.item.learned, log)
            case Origin.TRANSPORTED:
                return self._transport(log)
            case Origin.RELORA:
                return self._find(log, first)
            case Origin.REFRESHED:
                return self._refresh(log)
            case Origin.RETRAINED:
                return self._retrain(log)
            case _:
                return Candidate(self.item.adapter, self.of_copy, learned=self.item.learned)

    def _refit(self, learned: Learned, log: Log) -> Candidate:
        item, new = self.item, self.move.new

        def fit() -> dict[str, list[float]]:
            share = Share(log, 0.0, 0.8)
            return refit(new, learned, item.splits, self._replay(), item.adaptation, item.seed, share).magnitudes

        with self.timed("refit"):
            magnitudes = self.journal.once("magnitudes", _MAGNITUDES, fit)
            fitted = learned.with_magnitudes(magnitudes)
            adapter = fold(fitted, item.adapter.rank).adapter
            with attached(new.model, side_factors(adapter, new)):
                kept = retention(self.yardstick, text_losses(new, self.yardstick.tokens))
        gains = gains_of(learned, fitted)
        return Candidate(adapter, kept, {"gainLeast": min(gains), "gainMost": max(gains)}, learned=fitted)

    def _transport(self, log: Log) -> Candidate:
        with self.timed("transport"):
            self._transported = Transport(
                old=self.move.old,
                new=self.move.new,
                adapter=self.item.adapter,
                splits=self.item.splits,
                replay=self._replay,
                yardstick=self.yardstick,
                log=Share(log, 0.0, 0.8),
            ).run()
        return self._transported

    def _before_search(self) -> LoraAdapter:
        """What ReLoRA scales and tunes: the transported adapter where it beats Copy and keeps the base update."""
        own, found = self.item.adapter, self._transported
        if found is None or not holds(found.retention, floor(float(self.item.adaptation.min_retention), self.of_copy)):
            return own
        rows = encode(self.move.new, self.item.splits.search)
        copied, transported = (self._loss(adapter, rows) for adapter in (own, found.adapter))
        return found.adapter if transported < copied else own

    def _loss(self, adapter: LoraAdapter, rows: Sequence[Encoded]) -> float:
        new = self.move.new
        with attached(new.model, side_factors(adapter, new)):
            return float(mean_losses(new, rows).mean())

    def _find(self, log: Log, first: bool) -> Candidate:
        found = self._search(log, self.item.splits, first).run()
        self._relora = found.adapter
        parameters: dict[str, object] = {
            "alpha": found.start.alpha,
            "beta": found.start.beta,
            "tuningSteps": found.steps,
        }
        return Candidate(found.adapter, found.retention, parameters, found.evidence)

    def _refresh(self, log: Log) -> Candidate:
        teacher, splits = self._teacher(), self.item.splits
        if self._relora is None:
            taught = splits if splits.labelled else _answered(splits, teacher)
            self._relora = self._search(log, taught, copy_may_win=True).begin().adapter
        return Refresh(
            base=self.move.new,
            starts=self._starts(self._relora),
            teacher=teacher,
            prompts=[*(e.prompt for e in splits.train), *splits.inputs],
            replay=self._replay,
            settings=self._tuning(),
            checkpoints=self._checkpoints(Share(log, 0.4, 0.4)),
            timed=self.timed,
            journal=self.journal,
        ).run()

    def _starts(self, relora: LoraAdapter) -> dict[str, LoraAdapter]:
        transported = {} if self._transported is None else {Origin.TRANSPORTED.value: self._transported.adapter}
        return {Origin.COPIED.value: self.item.adapter, **transported, Origin.RELORA.value: relora}

    def _retrain(self, log: Log) -> Candidate:
        width = 0.8 / len(RATES)
        return Retrain(
            base=self.move.new,
            adapter=self.item.adapter,
            lessons=encode(self.move.new, self.item.splits.train),
            replay=self._replay,
            settings=self._tuning(Evenly),
            checkpoints=lambda number: self._checkpoints(Share(log, width * number, width)),
            timed=self.timed,
            journal=self.journal,
        ).run()

    def _search(self, log: Log, splits: Splits, copy_may_win: bool) -> Relora:
        return Relora(
            base=self.move.new,
            adapter=self._before_search(),
            drift=self.move.drift,
            splits=splits,
            settings=self.item.adaptation,
            yardstick=self.yardstick,
            of_copy=self.of_copy,
            checkpoints=self._checkpoints(Share(log, 0.4, 0.4)),
            replay=self._replay,
            seed=self.item.seed,
            copy_may_win=copy_may_win,
            log=log,
            timed=self.timed,
            journal=self.journal,
        )

    def _checkpoints(self, log: Log) -> Checkpoints:
        return Checkpoints(
            base=self.move.new,
            exam=self.exam,
            yardstick=self.yardstick,
            of_copy=self.of_copy,
            min_retention=float(self.item.adaptation.min_retention),
            max_steps=self.item.adaptation.max_steps,
            journal=self.journal,
            log=log,
        )

    def _replay(self) -> Sequence[Sequence[int]]:
        """Without a measurable move of the base there is nothing to keep."""
        return cached_replay(self.store, self.move.new).tokens if self.yardstick.measurable else ()

    def _teacher(self) -> Teacher:
        form = form_of(Metric.AGREEMENT, self.item.splits, self.move.old)
        return Teacher(Pair(self.move.old, self.item.adapter), form, lambda part: self.cache(part, form))

    def _tuning(self, kind: type[Tuning] = Tuning) -> Tuning:
        settings = self.item.adaptation
        return kind(
            max_steps=settings.max_steps,
            learning_rate=float(settings.learning_rate),
            batch_size=settings.batch_size,
            seed=self.item.seed,
        )

    def cache(self, part: str, form: Form) -> AnswerCache:
        """Of the old pair's answers to a part of the data."""
        return AnswerCache.of(self.store, self.item.reference, self.move.old, self.item.data, part, form)


def _answered(splits: Splits, teacher: Teacher) -> Splits:
    """Unlabelled splits with the old pair's answers where the search needs completions."""
    search = teacher.teach("search", [e.prompt for e in splits.search])
    answered = replace(splits, search=search)
    answered.require_tuning()
    return answered
