"""Evidence of answers that are the old pair's or not.

The old pair agrees with itself always, so nothing is paired: the agreeing answers are a binomial count, and what is to
be shown is that their share is above 1 - margin. The test is the exact one (Clopper and Pearson, Biometrika 26, 1934),
whose level holds at every number of samples; a score test's does not where the share is close to 1.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
from scipy.special import bdtr, bdtrc, betaincinv, betaln


@dataclass(frozen=True, slots=True)
class Agreements:
    """Answers so far; the gain is minus the share of those that differ."""

    same: int = 0
    different: int = 0

    @property
    def samples(self) -> int:
        return self.same + self.different

    @property
    def gain(self) -> float:
        return -self.different / self.samples if self.samples else 0.0

    def exceeds(self, gain: float, alpha: float) -> bool:
        """At most so few differences have a chance of ``alpha`` or less where -gain of the answers differ."""
        return gain < 0 and bool(bdtr(self.different, self.samples, -gain) <= alpha) if self.samples else False

    def falls_short(self, gain: float, alpha: float) -> bool:
        """At least so many."""
        return self.different > 0 and (gain >= 0 or bool(bdtrc(self.different - 1, self.samples, -gain) <= alpha))

    def lower_end(self, alpha: float) -> float:
        """-1 without samples, and where all differ."""
        return -1.0 if not self.same else -float(betaincinv(self.different + 1, self.same, 1 - alpha))

    def upper_end(self, alpha: float) -> float:
        return 0.0 if not self.different else -float(betaincinv(self.different, self.same + 1, alpha))

    def would_exceed(self, gain: float, alpha: float, samples: int) -> bool:
        different = round(self.different * samples / self.samples)
        return Agreements(samples - different, different).exceeds(gain, alpha)

    def chance(self, gain: float, alpha: float, samples: int) -> float:
        """Beta-binomial, with the prior of Jeffreys."""
        allowed = int(np.count_nonzero(bdtr(np.arange(samples + 1), samples, -gain) <= alpha)) - 1
        left = samples - self.samples
        more = np.arange(min(allowed - self.different, left) + 1)
        a, b = self.different + 0.5, self.same + 0.5
        ways = -betaln(left - more + 1, more + 1) - math.log(left + 1)
        return float(np.exp(ways + betaln(more + a, left - more + b) - betaln(a, b)).sum())

    def facts(self) -> dict[str, float]:
        return asdict(self)
