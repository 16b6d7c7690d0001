"""Evidence of gains of any size within bounds, such as differences of F1 or of token losses.

A studentised test trusts the spread that it sees, and where losses are rare and large it has not seen it yet: forty
equal answers, then one that is lost altogether, are common enough (see the simulation in ``benchmarks/adaptation``).
So the test is a bet (Waudby-Smith and Ramdas, JRSS-B 86, 2024). The capital starts at 1 and is multiplied, example by
example, by 1 + λ (gain - null), where λ ≥ 0 depends on earlier examples alone and never stakes more than there is. If
the true mean is the null or less the capital is a non-negative supermartingale, so it reaches 1/α with a chance of at
most α (Ville), whatever the distribution and at every number of examples.

The stake aims at a little more than 1/α at the last example (Voráček and Orabona, STaR-Bets, arXiv 2505.22422). It is
the hedge of a digital option, which under a normal distribution turns the bet into the z-test: the capital would be
K = Φ(x) / α, so λ = φ(x) / (Φ(x) σ √(examples left)) with x = Φ⁻¹(α K). Nothing is degenerate: where all gains are 0 it
takes ln(1/α) · bound / margin examples to pass, as many as a loss of ``bound`` that is just too rare to be seen needs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri_exp

Array = NDArray[np.float64]

_AIM = 1.05
"""Times 1/α: a hedge comes near what it aims at, and does not quite reach it where nothing is left to chance."""
_STAKE = 0.95
"""At most this share of the capital may be lost to one example."""
_PRIOR = 20.0
"""The spread starts as that of the rarest losses that the null allows, with the weight of so many examples."""
_GRID, _ROUNDS = 65, 4
"""An end of the interval is found to 1/64 of where it may lie, so often."""


def rejects(gains: Array, null: Array | float, bound: float, alpha: float) -> NDArray[np.bool_]:
    """Whether "the mean is at most ``null``" is rejected at level ``alpha``.

    ``gains`` [..., examples], none below -``bound``, in an order that does not depend on them; ``null`` [...] or one
    number, above -``bound``.
    """
    return _capital(gains, null, bound, alpha, gains.shape[-1]) >= -math.log(alpha)


def chances(gains: Array, null: Array | float, bound: float, alpha: float, samples: int) -> Array:
    """About: how likely ``rejects`` is at ``samples``, of which ``gains`` are the first.

    The bet is the hedge of an option, so its capital tells how far it is: Φ(x) = α K is the chance to get there if the
    null is true, and a drift of δ per example adds δ √left / σ to x.
    """
    seen, target = gains.shape[-1], -math.log(alpha)
    left, capital = samples - seen, _capital(gains, null, bound, alpha, samples)
    if left == 0:
        return (capital >= target).astype(np.float64)
    total, squares = gains.sum(axis=-1), (gains**2).sum(axis=-1)
    drift = (total / seen - null) / _spread(seen, total, squares, _prior(null, bound))
    x = ndtri_exp(np.minimum(capital - target - math.log(_AIM), 0.0))
    return np.where(capital >= target, 1.0, ndtr((x + drift * math.sqrt(left)) / math.sqrt(1 + left / seen)))


def _capital(gains: Array, null: Array | float, bound: float, alpha: float, samples: int) -> Array:
    """The logarithm of what a bet that ends at ``samples`` has after the first ``gains``."""
    reach, prior = bound + np.asarray(null), _prior(null, bound)
    target, aim = -math.log(alpha), -math.log(alpha) + math.log(_AIM)
    shape = np.broadcast_shapes(gains.shape[:-1], reach.shape)
    capital = np.zeros(shape)
    total, squares = np.zeros(shape), np.zeros(shape)
    for seen in range(gains.shape[-1]):
        spread = _spread(seen, total, squares, prior)
        wanted = _hazard(capital - aim) / (spread * math.sqrt(samples - seen))
        gain = gains[..., seen]
        stake = np.where(capital < target, np.minimum(wanted, _STAKE / reach), 0.0)
        capital = capital + np.log1p(stake * (gain - null))
        total, squares = total + gain, squares + gain**2
    return capital


def _prior(null: Array | float, bound: float) -> Array:
    """The sum of squares of gains that are 0 but for rare ones of -``bound``, with the null as their mean."""
    return _PRIOR * (bound + np.asarray(null)) * np.maximum(np.abs(null), 0.01 * bound)


def _spread(seen: int, total: Array, squares: Array, prior: Array) -> Array:
    """Standard deviation, from the sums of the gains and of their squares."""
    spread: Array = np.sqrt((prior + squares - total**2 / max(seen, 1)) / (_PRIOR + seen))
    return spread


def _hazard(logs: Array) -> Array:
    """φ(x) / Φ(x) where log Φ(x) = ``logs``; 0 where that is no probability."""
    logs = np.minimum(logs, 0.0)
    x = ndtri_exp(logs)
    hazard: Array = np.exp(-(x**2) / 2 - logs) / math.sqrt(2 * math.pi)
    return hazard


@dataclass(frozen=True)
class Gains:
    """Gains so far, in the order of the examples."""

    values: Sequence[float]
    bound: float
    """No gain is larger or smaller than this."""

    @cached_property
    def _array(self) -> Array:
        return np.asarray(self.values, dtype=np.float64)

    @property
    def samples(self) -> int:
        return len(self.values)

    @property
    def gain(self) -> float:
        return math.fsum(self.values) / len(self.values) if self.values else 0.0

    @property
    def deviation(self) -> float:
        """Standard deviation."""
        return float(self._array.std(ddof=1)) if self.samples > 1 else 0.0

    def exceeds(self, gain: float, alpha: float) -> bool:
        return gain > -self.bound and bool(rejects(self._array, gain, self.bound, alpha))

    def falls_short(self, gain: float, alpha: float) -> bool:
        return self._mirrored().exceeds(-gain, alpha)

    def lower_end(self, alpha: float) -> float:
        """-``bound`` without samples."""
        low, high = -self.bound, self.bound
        for _ in range(_ROUNDS):
            nulls = np.linspace(low, high, _GRID)[1:]
            kept = ~rejects(self._array[None, :], nulls, self.bound, alpha)
            first = int(kept.argmax()) if kept.any() else len(nulls) - 1
            low, high = (low if first == 0 else float(nulls[first - 1])), float(nulls[first])
        return low

    def upper_end(self, alpha: float) -> float:
        return -self._mirrored().lower_end(alpha)

    def would_exceed(self, gain: float, alpha: float, samples: int) -> bool:
        """By the normal distribution, and by what the largest stake can earn."""
        ahead = self.gain - gain
        enough = ahead > 0 and samples * math.log1p(_STAKE * ahead / (self.bound + gain)) >= -math.log(alpha)
        return enough and ahead * math.sqrt(samples) >= NormalDist().inv_cdf(1 - alpha) * self.deviation

    def chance(self, gain: float, alpha: float, samples: int) -> float:
        return float(chances(self._array, gain, self.bound, alpha, samples))

    def facts(self) -> dict[str, float]:
        return {"samples": self.samples, "gain": self.gain, "deviation": self.deviation}

    def _mirrored(self) -> Gains:
        return Gains([-value for value in self.values], self.bound)
