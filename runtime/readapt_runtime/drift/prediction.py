"""What a copied adapter will lose, told before anything is gated; a help for people, it decides nothing.

In: where drift and adapter meet (``overlap``: weights alone), or how much less likely the new pair makes a few answers
(one forward pass of either pair). Out: points of Accuracy, with the error that the same law had on base moves it was
not fitted to. Slopes and errors come from ``benchmarks/adaptation/predictor.py``; docs/adaptation.md has its tables.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from readapt_runtime.drift.overlap import Overlap


@dataclass(frozen=True, slots=True)
class Prediction:
    """Both in points of Accuracy."""

    points: float
    """Expected loss of Copy against the old pair, within [0, 100]."""
    error: float
    """Mean distance to what was measured, on moves that the law had not seen."""


@dataclass(frozen=True, slots=True)
class Law:
    """points = slope · x."""

    slope: float
    error: float

    def at(self, x: float) -> Prediction:
        """``x`` may be infinite, not NaN."""
        return Prediction(min(100.0, max(0.0, self.slope * x)), self.error)


BY_WEIGHTS: Law | None = None
"""x: ``pull`` of the overlap. None: not fitted yet, then facts are told and no points."""
BY_EXAMPLES: Law | None = None
"""x: by how much the probability per token of a few right answers falls."""


def pull(found: Overlap) -> float:
    """‖D‖ / ‖ΔW‖, of D the part that lies in the directions which the adapter reads."""
    return found.size * found.read**0.5 if found.size else 0.0


def told(law: Law | None, x: float) -> dict[str, object]:
    """``points`` and ``error`` for evidence and for printing; empty without a law."""
    return {} if law is None else asdict(law.at(x))


def facts(found: Overlap) -> dict[str, object]:
    """The prediction and what it comes from, for evidence and for printing; size is None for an adapter of zero."""
    size = found.size if math.isfinite(found.size) else None
    parts = {"size": size, "read": found.read, "written": found.written, "along": found.along}
    return {**parts, **told(BY_WEIGHTS, pull(found))}
