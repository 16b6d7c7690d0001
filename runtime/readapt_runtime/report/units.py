"""How the numbers of a gate are written for people."""

from __future__ import annotations

from dataclasses import dataclass

from readapt_api.jobs import RungResult


@dataclass(frozen=True, slots=True)
class Unit:
    """Of differences and scores."""

    name: str
    factor: float
    decimals: int

    def scaled(self, value: float) -> float:
        return self.factor * value

    def difference(self, value: float) -> str:
        """With its sign, without the name."""
        return f"{self.scaled(value):+.{self.decimals}f}"

    def score(self, value: float) -> str:
        return f"{self.scaled(value):.{self.decimals}f}"


POINTS = Unit("points", factor=100.0, decimals=1)


def gain(rung: RungResult) -> float:
    """By how much the new pair is better than the old one."""
    return rung.score - rung.reference
