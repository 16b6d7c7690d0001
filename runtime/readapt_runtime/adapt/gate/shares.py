"""Evidence of answers that are the old pair's or not.

The old pair agrees with itself always, so nothing is paired: the agreeing answers are a binomial count, and what is to
be shown is that their share is above 1 - margin. The test is the exact one (Clopper and Pearson, Biometrika 26, 1934),
whose level holds at every number of samples; a score test's does not where the share is close to 1.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from scipy.special import bdtr, bdtrc, betaincinv


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

    def facts(self) -> dict[str, float]:
        return asdict(self)
