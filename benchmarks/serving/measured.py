"""Repeated values of one quantity, told as their median and half their range."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Measured:
    """Repeated values of one quantity."""

    values: tuple[float, ...]

    @property
    def middle(self) -> float:
        return statistics.median(self.values)

    @property
    def half_spread(self) -> float:
        """Half the distance between the largest and the smallest."""
        return (max(self.values) - min(self.values)) / 2

    def per(self, other: Measured) -> Measured:
        """Run by run, this divided by the other."""
        return Measured(tuple(mine / theirs for mine, theirs in zip(self.values, other.values, strict=True)))

    def text(self, digits: int) -> str:
        return f"{self.middle:.{digits}f} ± {self.half_spread:.{digits}f}"


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table; the first line is its heading."""
    ruled = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in ruled) + "\n"
