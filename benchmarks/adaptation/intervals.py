"""Means over seeds, with how sure they are."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from scipy.stats import t

LEVEL = 0.95


def half_width(values: Sequence[float]) -> float:
    """Of Student's interval of the mean at LEVEL; infinite for fewer than two values."""
    if len(values) < 2:
        return math.inf
    quantile = float(t.ppf((1 + LEVEL) / 2, len(values) - 1))
    return quantile * statistics.stdev(values) / math.sqrt(len(values))


def mean_with_interval(values: Sequence[float]) -> str:
    """``61.2 ± 1.4``; the mean alone of one value, a dash for none."""
    if not values:
        return "–"
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) < 2 else f"{mean} ± {half_width(values):.1f}"
