"""How a checkpoint does on the stopping examples, by the metric of the gate; no example of the gate is among them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from readapt_api.adaptation import Metric
from readapt_runtime.adapt.comparison import AnswerStream, Pair
from readapt_runtime.adapt.measure import Measure, mean

_FIRST = 96
"""Examples after which a candidate that has clearly failed is asked no more."""


@dataclass(frozen=True, slots=True)
class Grade:
    """What a candidate came to."""

    value: float
    """Mean score, larger is better."""
    gain: float
    """Mean of the paired differences to what is good enough, on the examples that were asked."""
    error: float
    """Standard error of ``gain``; infinite for a single example."""

    @property
    def failed(self) -> bool:
        """Short of good enough by more than two standard errors."""
        return self.gain + 2 * self.error < 0

    @property
    def clear(self) -> bool:
        """Beyond good enough by more than a standard error."""
        return self.gain > self.error


@dataclass(frozen=True, slots=True)
class Exam:
    """Grades are mean scores, negated where lower is better: larger is better throughout."""

    measure: Measure
    old: AnswerStream
    """The old pair's answers."""
    margin: float
    """maxRegression."""

    @property
    def target(self) -> float:
        """The grade of a candidate that is good enough: the old pair's own.

        Where agreement with the old pair is measured that would be perfection; there it is half of what is allowed.
        """
        if self.measure.metric is Metric.AGREEMENT:
            return 1.0 - self.margin / 2
        return self._signed(self.scores(None, len(self.old.examples)))

    def grade(self, pair: Pair) -> Grade:
        """Asks the first examples, and the others unless these have told enough."""
        stream = AnswerStream(pair, self.old.examples, self.measure.form)
        grade = self._graded(stream, min(_FIRST, len(self.old.examples)))
        return grade if grade.failed else self._graded(stream, len(self.old.examples))

    def _graded(self, stream: AnswerStream, count: int) -> Grade:
        examples, answers = self.old.examples[:count], self.old.first(count)
        scores = self.measure.scores(examples, stream.first(count), answers)
        gains = self._gains(scores, self.measure.scores(examples, answers, answers))
        error = statistics.stdev(gains) / math.sqrt(count) if count > 1 else math.inf
        return Grade(self._signed(scores), mean(gains), error)

    def _gains(self, scores: Sequence[float], old: Sequence[float]) -> list[float]:
        metric = self.measure.metric
        if metric is Metric.AGREEMENT:
            return [score - self.target for score in scores]
        return [metric.gain(new, before) for new, before in zip(scores, old, strict=True)]

    def scores(self, pair: Pair | None, count: int) -> list[float]:
        """Of the first ``count`` examples; None stands for the old pair."""
        examples, old = self.old.examples[:count], self.old.first(min(count, len(self.old.examples)))
        answers = old if pair is None else AnswerStream(pair, examples, self.measure.form).all()
        return self.measure.scores(examples, answers, old)

    def _signed(self, scores: Sequence[float]) -> float:
        return self.measure.metric.gain(mean(scores), 0.0)
