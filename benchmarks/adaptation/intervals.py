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


def mean_with_interval(values: Sequence[float], digits: int = 1, sign: bool = False) -> str:
    """``61.2 ± 1.4``; the mean alone of one value, a dash for none."""
    if not values:
        return "–"
    mean = f"{statistics.mean(values):{'+' if sign else ''}.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {half_width(values):.{digits}f}"


def ratio_with_interval(ratios: Sequence[float]) -> str:
    """``1.52 (1.10 to 2.10)``: the geometric mean, with the interval of the mean logarithm; a dash for none."""
    if not ratios:
        return "–"
    logs = [math.log(ratio) for ratio in ratios]
    mean, half = statistics.mean(logs), half_width(logs)
    text = f"{math.exp(mean):.2f}"
    return text if len(logs) < 2 else f"{text} ({math.exp(mean - half):.2f} to {math.exp(mean + half):.2f})"


def share_with_interval(gains: Sequence[float], losses: Sequence[float]) -> str:
    """``85 % ± 12``: the sum of ``gains`` over that of ``losses``, with Student's interval of the linearised ratio.

    A dash where nothing was lost on the whole.
    """
    if sum(losses) <= 0:
        return "–"
    share = sum(gains) / sum(losses)
    if len(gains) < 2:
        return f"{100 * share:.0f} %"
    rests = [gain - share * loss for gain, loss in zip(gains, losses, strict=True)]
    return f"{100 * share:.0f} % ± {100 * half_width(rests) / statistics.mean(losses):.0f}"
