"""From answers to scores: what the metric makes of what two pairs answered.

Scores are shares between 0 and 1, or nats; what they mean is said in ``readapt_api.adaptation.Metric``.
"""

from __future__ import annotations

import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from readapt_api.adaptation import Metric
from readapt_runtime.adapt import gate
from readapt_runtime.adapt.base import LoadedBase
from readapt_runtime.adapt.data import Example, Splits
from readapt_runtime.adapt.forms import Answer, Form, form_of

LOSS_CAP = 5.0
"""Nats per token. A completion whose tokens are less likely than 1 in 150 is lost; how lost does not matter."""

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, slots=True)
class Measure:
    """A metric, ready to be applied."""

    metric: Metric
    form: Form

    @classmethod
    def of(cls, metric: Metric, splits: Splits, base: LoadedBase) -> Measure:
        return cls(metric, form_of(metric, splits, base))

    def scores(self, examples: Sequence[Example], answers: Sequence[Answer], old: Sequence[Answer]) -> list[float]:
        """One per example; ``old`` are the old pair's answers to the same examples."""
        judge = _JUDGES[self.metric]
        return [judge(e.completion, a, o) for e, a, o in zip(examples, answers, old, strict=True)]

    def evidence(self, old: Sequence[float], new: Sequence[float]) -> gate.Evidence:
        """What the gate looks at, from the scores of both pairs."""
        match self.metric:
            case Metric.AGREEMENT:
                same = int(sum(new))
                return gate.Agreements(same, len(new) - same)
            case Metric.ACCURACY | Metric.EXACT_MATCH:
                return gate.Counts().add((bool(o), bool(n)) for o, n in zip(old, new, strict=True))
            case Metric.F1 | Metric.TOKEN_LOSS:
                gains = [self.metric.gain(n, o) for o, n in zip(old, new, strict=True)]
                return gate.Gains(gains, bound=1.0 if self.metric is Metric.F1 else LOSS_CAP)


def mean(scores: Sequence[float]) -> float:
    """Raises ZeroDivisionError without scores."""
    return math.fsum(scores) / len(scores)


def plain(text: str) -> str:
    """As ExactMatch compares: Unicode NFC, runs of white space as one blank, none at the ends."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def words(text: str) -> list[str]:
    """As F1 counts (SQuAD's evaluation): lower case, without ASCII punctuation and English articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall of words, as multisets; 1 when neither has any."""
    mine, theirs = words(answer), words(reference)
    if not mine or not theirs:
        return float(mine == theirs)
    shared = (Counter(mine) & Counter(theirs)).total()
    return 2 * shared / (len(mine) + len(theirs))


_JUDGES: Mapping[Metric, Callable[[str, Answer, Answer], float]] = {
    Metric.ACCURACY: lambda reference, answer, _: float(answer == reference),
    Metric.EXACT_MATCH: lambda reference, answer, _: float(plain(str(answer)) == plain(reference)),
    Metric.F1: lambda reference, answer, _: f1(str(answer), reference),
    Metric.AGREEMENT: lambda _, answer, old: float(plain(str(answer)) == plain(str(old))),
    Metric.TOKEN_LOSS: lambda _, answer, __: min(float(answer), LOSS_CAP),
}
"""(reference completion, answer, the old pair's answer) -> score."""
