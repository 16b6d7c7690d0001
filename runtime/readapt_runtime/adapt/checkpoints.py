"""Checkpoints of a rung that learns: graded on the stopping examples, held against the retention floor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pydantic import TypeAdapter

from readapt_runtime.adapt.base import LoadedBase
from readapt_runtime.adapt.comparison import Pair
from readapt_runtime.adapt.exam import Exam
from readapt_runtime.adapt.factors import attached, side_factors
from readapt_runtime.adapt.journal import Journal
from readapt_runtime.adapt.retention import Retention, Yardstick, floor, holds, retention, text_losses
from readapt_runtime.adapt.tuning import Evaluation
from readapt_runtime.continual.blocks import Learned
from readapt_runtime.lora_format import LoraAdapter
from readapt_runtime.progress import Log

_EVALUATION = TypeAdapter(Evaluation)


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a rung offers to the gate."""

    adapter: LoraAdapter
    retention: Retention | None
    parameters: dict[str, object] = field(default_factory=dict)
    """How it was made, in a few words: part of the variant's provenance."""
    evidence: dict[str, object] = field(default_factory=dict)
    learned: Learned | None = None
    """The blocks behind ``adapter``, where it is a sum of them."""


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """Evaluates the checkpoints of one tuning."""

    base: LoadedBase
    exam: Exam
    yardstick: Yardstick
    of_copy: Retention | None
    """Retention of Copy; None where retention cannot be measured."""
    min_retention: float
    max_steps: int
    journal: Journal
    log: Log

    def evaluate(self, step: int, adapter: LoraAdapter, before: Sequence[Evaluation]) -> Evaluation:
        """The grade and, when the checkpoint may be kept, its retention on the whole text; now or by an earlier run."""
        self.log.progress(step / self.max_steps, "tuning")
        name = f"evaluation at step {step} of {adapter.fingerprint}"
        return self.journal.once(name, _EVALUATION, lambda: self._evaluate(step, adapter, before))

    def _evaluate(self, step: int, adapter: LoraAdapter, before: Sequence[Evaluation]) -> Evaluation:
        grade, target = self.exam.grade(Pair(self.base, adapter)), self.exam.target
        best = max((evaluation.score for evaluation in before), default=grade.value)
        kept, measured = None, self.of_copy is not None and grade.value >= min(best, target)
        if measured:
            with attached(self.base.model, side_factors(adapter, self.base)):
                kept = retention(self.yardstick, text_losses(self.base, self.yardstick.tokens))
        feasible = self.of_copy is None or (measured and holds(kept, floor(self.min_retention, self.of_copy)))
        value = None if kept is None else kept.value
        self.log.info("checkpoint", step=step, score=grade.value, target=target, retention=value)
        ready = feasible and grade.value >= target
        return Evaluation(step, grade.value, kept, feasible, ready, clear=ready and grade.clear)
