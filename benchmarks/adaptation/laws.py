"""Laws for what Copy loses, and how far they are off on a move, or a task, that they were not fitted to.

A law is one slope: points lost = slope · x, fitted by least squares through the origin. With a handful of moves more
constants would fit the moves and not the law.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from readapt_runtime.drift.overlap import Overlap
from readapt_runtime.drift.prediction import Law, pull

LARGE = 3.0
"""Points; the margin of the gate in the study."""


@dataclass(frozen=True, slots=True)
class Copied:
    """What one adapter lost when it was copied over one move, and what could be known before."""

    move: str
    task: str
    seed: int
    lost: float
    """Points of accuracy on the gate's examples; negative when Copy was better than the old pair."""
    overlap: Overlap
    old_loss: float
    """Nats per token of a few right answers with the old pair."""
    new_loss: float
    old_likelihood: float
    new_likelihood: float


Feature = Callable[[Copied], float]
WEIGHTS: dict[str, Feature] = {
    "nothing: the mean of the other moves": lambda c: 1.0,
    "‖D‖ / ‖ΔW‖": lambda c: c.overlap.size,
    "(‖D‖ / ‖ΔW‖)²": lambda c: c.overlap.size**2,
    "‖D‖ / ‖ΔW‖, of D what the adapter reads": lambda c: pull(c.overlap),
    "‖D‖ / ‖ΔW‖, of D what the adapter writes": lambda c: c.overlap.size * c.overlap.written**0.5,
}
EXAMPLES: dict[str, Feature] = {
    "32 examples: rise of the loss, nats": lambda c: c.new_loss - c.old_loss,
    "32 examples: fall of the likelihood": lambda c: c.old_likelihood - c.new_likelihood,
}
FEATURES = WEIGHTS | EXAMPLES


@dataclass(frozen=True, slots=True)
class Held:
    """One group of cases, predicted by the law of all others."""

    group: str
    error: float
    """Mean distance in points."""
    right: float
    """Share of its cases in which the law was right about whether more than LARGE points are lost."""


def slope(cases: Sequence[Copied], feature: Feature) -> float:
    """Of least squares through the origin; 0 where the feature is 0 everywhere."""
    squares = sum(feature(c) ** 2 for c in cases)
    return sum(feature(c) * c.lost for c in cases) / squares if squares else 0.0


def left_out(cases: Sequence[Copied], feature: Feature, group: Callable[[Copied], str]) -> list[Held]:
    """Per group the errors of the law fitted to the other groups. Raises ValueError for a single group."""
    names = list(dict.fromkeys(map(group, cases)))
    if len(names) < 2:
        raise ValueError(f"one group alone, {', '.join(names) or 'none'}: nothing to fit a law to")
    return [_held(name, cases, feature, group) for name in names]


def _held(name: str, cases: Sequence[Copied], feature: Feature, group: Callable[[Copied], str]) -> Held:
    law = Law(slope([c for c in cases if group(c) != name], feature), error=0.0)
    left = [c for c in cases if group(c) == name]
    told = [law.at(feature(c)).points for c in left]
    return Held(
        name,
        statistics.fmean(abs(points - c.lost) for points, c in zip(told, left, strict=True)),
        statistics.fmean((points > LARGE) == (c.lost > LARGE) for points, c in zip(told, left, strict=True)),
    )
