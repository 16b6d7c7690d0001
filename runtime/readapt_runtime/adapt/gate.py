"""The paired, sequential test that a variant must pass.

In: how often the new pair answered right where the old pair did not (wins), the reverse (losses), and how often they
agreed (ties). Out: an interval of the difference of the two accuracies, and a decision. Pure.

The looks are declared before the first answer: fixed shares of the examples. Look k may spend only its part of the
error budget, so the union bound keeps the chance of any false pass below ``alpha`` however the looks depend on each
other (alpha spending: Lan and DeMets, Biometrika 70, 1983; here with the increments of a power function, t ** 2).
Within a look the test is Tango's score test of a paired difference (Statistics in Medicine 17, 1998), because it stays
sound at small counts and its interval is not degenerate when the pairs never disagree.

Chosen by power: at 3,000 examples, 10 % disagreement, margin 3 points and level 0.025 it passes a true difference
of -1 point nine times in ten; a betting confidence sequence (Waudby-Smith and Ramdas, 2024), which may look after every
example, does so seven times in ten and saves few examples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from statistics import NormalDist

_LOOKS = (0.125, 0.25, 0.5, 0.75, 1.0)
"""Shares of the examples after which the gate may stop."""
_SPENDING_POWER = 2.0
"""Level spent up to share t is alpha * t ** 2: early looks stop only for clear cases, the last keeps 44 %."""
_MOST_SAMPLES = 1_000_000
"""Beyond this ``samples_needed`` is not worth naming."""


class Decision(StrEnum):
    PASS = "Pass"
    FAIL = "Fail"
    MORE = "More"
    """More examples; after the last look: undecided."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Paired answers so far."""

    wins: int = 0
    losses: int = 0
    ties: int = 0

    @property
    def samples(self) -> int:
        return self.wins + self.losses + self.ties

    @property
    def difference(self) -> float:
        """Accuracy of the new pair minus that of the old pair; 0 before the first sample."""
        return (self.wins - self.losses) / self.samples if self.samples else 0.0

    def add(self, pairs: Iterable[tuple[bool, bool]]) -> Counts:
        """With more (old pair right, new pair right)."""
        differences = [int(new) - int(old) for old, new in pairs]
        return Counts(
            self.wins + differences.count(1), self.losses + differences.count(-1), self.ties + differences.count(0)
        )

    def mirrored(self) -> Counts:
        return Counts(self.losses, self.wins, self.ties)


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
    """maxRegression, a difference of accuracies in (0, 1)."""
    samples: int
    """The examples that there are, at most maxSamples."""

    @classmethod
    def for_policy(cls, confidence: float, margin: float, samples: int, rungs: int) -> Rule:
        """The error budget 1 - confidence is split evenly over the rungs, each of which tests once."""
        return cls((1.0 - confidence) / rungs, margin, samples)

    def looks(self) -> tuple[Look, ...]:
        """In order; their levels add up to ``alpha`` and the last one sees all samples."""
        ends = [max(1, math.ceil(share * self.samples)) for share in _LOOKS]
        spent = [self.alpha * share**_SPENDING_POWER for share in _LOOKS]
        return tuple(Look(n, s - before) for n, s, before in zip(ends, spent, [0.0, *spent[:-1]], strict=True))


def lower_end(counts: Counts, alpha: float) -> float:
    """The largest difference that a one-sided score test at ``alpha`` still rejects from below; -1 without samples."""
    critical = NormalDist().inv_cdf(1 - alpha)
    low, high = -1.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if score(counts, middle) > critical else (low, middle)
    return low


def upper_end(counts: Counts, alpha: float) -> float:
    """The mirror image of ``lower_end``."""
    return -lower_end(counts.mirrored(), alpha)


def score(counts: Counts, difference: float) -> float:
    """Tango's statistic of "the true difference is ``difference``": standard normal if so, decreasing in it.

    (b - c - nδ) / √(n (2 q + δ (1 - δ))) with q the maximum-likelihood share of losses under that difference.
    """
    n, b, c = counts.samples, counts.wins, counts.losses
    linear = (2 * n - b + c) * difference - b - c
    constant = -c * difference * (1 - difference)
    share = (math.sqrt(max(0.0, linear**2 - 8 * n * constant)) - linear) / (4 * n) if n else 0.0
    variance = n * (2 * share + difference * (1 - difference))
    gap = b - c - n * difference
    return gap / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, gap) if gap else 0.0


def decide(counts: Counts, rule: Rule, look: Look) -> Decision:
    """Pass when the lower end is above -margin, fail when the upper end is below it, else more examples."""
    critical = NormalDist().inv_cdf(1 - look.alpha)
    if score(counts, -rule.margin) > critical:
        return Decision.PASS
    if score(counts.mirrored(), rule.margin) > critical:
        return Decision.FAIL
    return Decision.MORE


def samples_needed(counts: Counts, rule: Rule) -> int | None:
    """About how many samples would pass if both pairs went on as they did so far; None when none would."""
    if not counts.samples or counts.difference <= -rule.margin or not _would_pass(counts, rule, _MOST_SAMPLES):
        return None
    low, high = counts.samples, _MOST_SAMPLES
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        low, high = (low, middle) if _would_pass(counts, rule, middle) else (middle, high)
    return high


def _would_pass(counts: Counts, rule: Rule, samples: int) -> bool:
    factor = samples / counts.samples
    wins, losses = round(counts.wins * factor), round(counts.losses * factor)
    scaled = Counts(wins, losses, samples - wins - losses)
    return decide(scaled, rule, rule.looks()[-1]) is Decision.PASS
