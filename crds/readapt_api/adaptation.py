"""What users choose about adaptation: how far to go, what is compared, whether it is gated."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Policy(StrEnum):
    """Which rungs of the ladder may be tried, cheapest first."""

    AUTO = "Auto"
    """Copy, Transport, ReLoRA, Refresh, Retrain, up to the first that passes; without labels the 1st, 2nd and 4th."""
    COPY = "Copy"
    """The old weights on the new base."""
    TRANSPORT = "Transport"
    """Solved for layer by layer, to make the new base behave on prompts as the old pair did; needs no labels."""
    RELORA = "ReLoRA"
    """The old weights scaled and moved against the drift, then tuned if need be."""
    REFRESH = "Refresh"
    """The old pair answers inputs, and the new adapter learns from its answers; needs no labels."""
    RETRAIN = "Retrain"
    """From scratch on the training examples."""


class GateMode(StrEnum):
    """Whether a variant is tested before anyone is served by it."""

    ENFORCE = "Enforce"
    SKIP = "Skip"
    """Nothing is compared: the old weights are copied, an extract is taken as it is. Works without data."""


UNGATED_POLICIES = (Policy.AUTO, Policy.COPY)
UNGATED_RULE = "a skipped gate moves by Copy: policy must be Auto or Copy"


@dataclass(frozen=True, slots=True)
class Unit:
    """How a metric's numbers are written for people."""

    name: str
    """Of a difference."""
    factor: float
    """What a number is multiplied by before it is written."""
    decimals: int
    level: str = ""
    """What follows a score, where that differs from a difference."""

    def difference(self, value: float) -> str:
        """With its sign, without the name: ``-5.2``."""
        return f"{self.factor * value:+.{self.decimals}f}"

    def score(self, value: float) -> str:
        """``91.6 %``, ``0.512 nats per token``."""
        return f"{self.factor * value:.{self.decimals}f} {self.level or self.name}"


_POINTS = Unit("points", factor=100.0, decimals=1, level="%")
_NATS = Unit("nats per token", factor=1.0, decimals=3)


class Metric(StrEnum):
    """What the gate compares the old pair and the new pair by, on the same examples.

    Stored numbers are shares between 0 and 1, or nats; ``unit`` says how they are written. A difference is a *gain*
    everywhere: positive is better, whatever the direction of the metric.
    """

    unit: Unit
    higher_is_better: bool
    needs_labels: bool
    says: str
    """For people."""

    def __new__(cls, value: str, unit: Unit, higher_is_better: bool, needs_labels: bool, says: str) -> Metric:
        member = str.__new__(cls, value)
        member._value_ = value
        member.unit, member.higher_is_better, member.needs_labels = unit, higher_is_better, needs_labels
        member.says = says
        return member

    ACCURACY = (
        "Accuracy",
        _POINTS,
        True,
        True,
        "share of examples whose likeliest completion, among the distinct completions of train (at most 256), is the "
        "right one; likelihood per token",
    )
    EXACT_MATCH = (
        "ExactMatch",
        _POINTS,
        True,
        True,
        "share of examples whose greedy completion equals the reference, after Unicode NFC and with runs of white "
        "space as one blank and none at the ends; case and punctuation count",
    )
    F1 = (
        "F1",
        _POINTS,
        True,
        True,
        "mean over examples of the F1 of words that greedy completion and reference share, as SQuAD counts them: lower "
        "case, without punctuation and the articles a, an, the",
    )
    AGREEMENT = (
        "Agreement",
        _POINTS,
        True,
        False,
        "share of inputs that the new pair answers as the old pair does, by the likeliest completion where train has "
        "labels, else by the greedy one; the old pair's own value is 100 %",
    )
    TOKEN_LOSS = (
        "TokenLoss",
        _NATS,
        False,
        True,
        "mean over examples of the negative log-likelihood per token of the reference completion and its end, where an "
        "example counts at most 5 nats",
    )

    @property
    def direction(self) -> str:
        return "higher is better" if self.higher_is_better else "lower is better"

    def gain(self, score: float, reference: float) -> float:
        """How much better ``score`` is, in the metric's unit; negative when it is worse."""
        return score - reference if self.higher_is_better else reference - score
