"""What a trial of the search measures: the search examples and a part of the retention text, always the same.

In: side factors that stand for a point. Out: ``Measured``. Next: the search decides where to go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from readapt_runtime.adapt.base import LoadedBase
from readapt_runtime.adapt.factors import SideFactors, attached
from readapt_runtime.adapt.retention import Retention, Yardstick, floor, retention, text_losses
from readapt_runtime.adapt.search import COPY, Measured, Point
from readapt_runtime.adapt.tokens import Encoded, mean_losses

SEARCH_SEQUENCES = 12
"""Of the retention text, for a trial of the search."""


@dataclass(slots=True)
class Meter:
    """Measures one point after the other, Copy first: what Copy keeps of the part of the text gives the floor on it."""

    base: LoadedBase
    rows: Sequence[Encoded]
    """The search examples."""
    yardstick: Yardstick
    min_retention: float
    of_copy: Retention | None
    """On the whole text. Where Copy itself keeps nothing there is no constraint, and the text is not read."""
    floor: float | None = None
    """On the part of the text that is read; set by the first trial, Copy."""

    @property
    def part(self) -> Yardstick:
        """The part of the text that is read."""
        return self.yardstick.part(SEARCH_SEQUENCES)

    def measure(self, point: Point, factors: Mapping[str, SideFactors]) -> Measured:
        """``point`` as ``factors`` stand for it."""
        part = self.part
        with attached(self.base.model, factors):
            losses = mean_losses(self.base, self.rows)
            constrained = floor(self.min_retention, self.of_copy) is not None
            kept = retention(part, text_losses(self.base, part.tokens)) if constrained else None
        if point == COPY and self.floor is None:
            self.floor = floor(self.min_retention, kept)
        return Measured(point, tuple(losses.tolist()), None if kept is None else kept.value, self.floor)
