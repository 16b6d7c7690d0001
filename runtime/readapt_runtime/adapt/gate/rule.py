"""When the gate looks, and what it decides.

The looks are declared before the first answer: fixed shares of the examples. Look k may spend only its part of the
error budget, so the union bound keeps the chance of any false pass below ``alpha`` however the looks depend on each
other (alpha spending: Lan and DeMets, Biometrika 70, 1983; here with the increments of a power function, t ** 2).
Within a look the test is that of the evidence, at the look's own level.

Where another rung waits, an exam also ends when the looks that are left would hardly let it pass (stochastic
curtailment: Lan, Simon and Halperin, Sequential Analysis 1, 1982). Every pass is one that the whole exam would have
given, so this can only lower the chance of a false one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

_LOOKS = (0.125, 0.25, 0.5, 0.75, 1.0)
"""Shares of the examples after which the gate may stop."""
_SPENDING_POWER = 2.0
"""Level spent up to share t is alpha * t ** 2: early looks stop only for clear cases, the last keeps 44 %."""
HOPELESS = 0.05
"""An exam ends when the looks that are left pass with a smaller chance than this."""
_MOST_SAMPLES = 1_000_000
"""Beyond this ``samples_needed`` is not worth naming."""


class Decision(StrEnum):
    PASS = "Pass"
    FAIL = "Fail"
    MORE = "More"
    """More examples; after the last look: undecided."""
    FUTILE = "Futile"
    """Undecided, and more examples would hardly make it pass."""

    @property
    def undecided(self) -> bool:
        return self in (Decision.MORE, Decision.FUTILE)


class Evidence(Protocol):
    """Paired scores of the first so many examples. A gain is how much better the new pair is, in the metric's unit."""

    @property
    def samples(self) -> int: ...

    @property
    def gain(self) -> float:
        """The mean observed gain; 0 before the first sample."""

    def exceeds(self, gain: float, alpha: float) -> bool:
        """Whether "the true gain is ``gain`` or less" is rejected at level ``alpha``."""

    def falls_short(self, gain: float, alpha: float) -> bool:
        """Whether "the true gain is ``gain`` or more" is rejected at level ``alpha``."""

    def lower_end(self, alpha: float) -> float:
        """The largest gain that is exceeded."""

    def upper_end(self, alpha: float) -> float:
        """The smallest gain that is fallen short of."""

    def would_exceed(self, gain: float, alpha: float, samples: int) -> bool:
        """About: ``exceeds`` if it went on like this up to ``samples``."""

    def chance(self, gain: float, alpha: float, samples: int) -> float:
        """About: that ``exceeds`` comes true at ``samples``, not fewer than now.

        Averaged over the true gains that the evidence leaves likely (predictive power: Spiegelhalter, Freedman and
        Blackburn, Controlled Clinical Trials 7, 1986).
        """

    def facts(self) -> dict[str, float]:
        """What to keep of it."""


@dataclass(frozen=True, slots=True)
class Look:
    """One pre-declared look: after how many samples, and the level that each of its two ends may spend."""

    samples: int
    alpha: float


@dataclass(frozen=True, slots=True)
class Rule:
    """What a rung must show: a one-sided test at level ``alpha`` against a loss of more than ``margin``."""

    alpha: float
    margin: float
    """maxRegression, in the metric's unit, in (0, 1)."""
    samples: int
    """The examples that there are, at most maxSamples."""
    curtailed: bool = False
    """Ends when it would hardly pass any more."""

    @classmethod
    def for_policy(cls, confidence: float, margin: float, samples: int, rungs: int, last: bool = True) -> Rule:
        """The error budget 1 - confidence is split evenly over the rungs, each of which tests once.

        The ``last`` rung sees all examples that it needs: nothing waits for it to end, and what it has seen says
        how many examples would do.
        """
        return cls((1.0 - confidence) / rungs, margin, samples, curtailed=not last)

    def looks(self) -> tuple[Look, ...]:
        """In order; their levels add up to ``alpha`` and the last one sees all samples."""
        ends = [max(1, math.ceil(share * self.samples)) for share in _LOOKS]
        spent = [self.alpha * share**_SPENDING_POWER for share in _LOOKS]
        return tuple(Look(n, s - before) for n, s, before in zip(ends, spent, [0.0, *spent[:-1]], strict=True))


def decide(evidence: Evidence, rule: Rule, look: Look) -> Decision:
    """Pass when the lower end is above -margin, fail when the upper end is below it, else more if that may help."""
    if evidence.exceeds(-rule.margin, look.alpha):
        return Decision.PASS
    if evidence.falls_short(-rule.margin, look.alpha):
        return Decision.FAIL
    later = [other for other in rule.looks() if other.samples > look.samples]
    if rule.curtailed and later:
        chances = (evidence.chance(-rule.margin, other.alpha, other.samples) for other in later)
        return Decision.FUTILE if sum(chances) < HOPELESS else Decision.MORE
    return Decision.MORE


def samples_needed(evidence: Evidence, rule: Rule) -> int | None:
    """About how many samples, beyond the rule's, would pass if both pairs went on like this; None when none would."""
    level = rule.looks()[-1].alpha

    def would_pass(samples: int) -> bool:
        return evidence.would_exceed(-rule.margin, level, samples)

    if not evidence.samples or evidence.gain <= -rule.margin or not would_pass(_MOST_SAMPLES):
        return None
    low, high = rule.samples, _MOST_SAMPLES
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        low, high = (low, middle) if would_pass(middle) else (middle, high)
    return high
