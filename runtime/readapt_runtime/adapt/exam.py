"""How a checkpoint does on the stopping examples, by the metric of the gate; no example of the gate is among them."""

from __future__ import annotations

from dataclasses import dataclass

from readapt_api.adaptation import Metric
from readapt_runtime.adapt.comparison import AnswerStream, Pair
from readapt_runtime.adapt.measure import Measure, mean


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
        return self._signed(self.scores(None))

    def grade(self, pair: Pair) -> float:
        return self._signed(self.scores(pair))

    def scores(self, pair: Pair | None) -> list[float]:
        """Per example; None stands for the old pair."""
        examples, old = self.old.examples, self.old.all()
        answers = old if pair is None else AnswerStream(pair, examples, self.measure.form).all()
        return self.measure.scores(examples, answers, old)

    def _signed(self, scores: list[float]) -> float:
        return self.measure.metric.gain(mean(scores), 0.0)
