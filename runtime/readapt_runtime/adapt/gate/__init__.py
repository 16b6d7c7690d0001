"""The paired, sequential test that a variant must pass.

In: what the old and the new pair scored on the same examples, as evidence of one of three kinds. Out: an interval of
the gain, and a decision. Pure.

    rule.py     when it looks, what each look may spend, what it decides
    pairs.py    right or wrong, twice: Tango's score test
    shares.py   as the old pair or not: the exact binomial test
    means.py    differences of any size within bounds: a bet against the null
"""

from __future__ import annotations

from readapt_runtime.adapt.gate.means import Gains
from readapt_runtime.adapt.gate.pairs import Counts
from readapt_runtime.adapt.gate.rule import Decision, Evidence, Look, Rule, decide, samples_needed
from readapt_runtime.adapt.gate.shares import Agreements

__all__ = ["Agreements", "Counts", "Decision", "Evidence", "Gains", "Look", "Rule", "decide", "samples_needed"]
