"""The paired sequential test against known truth and against an independent computation."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import binom

from readapt_runtime.adapt.gate import Agreements, Counts, Decision, Evidence, Gains, Look, Rule, decide, samples_needed
from readapt_runtime.adapt.gate.pairs import score

RULE = Rule(alpha=0.025, margin=0.03, samples=3000)


def walk(rule: Rule, disagreement: float, effect: float, draw: np.random.Generator) -> Decision:
    """One gate on examples drawn with a known truth."""
    wins, losses = (disagreement + effect) / 2, (disagreement - effect) / 2
    counts, seen = Counts(), 0
    for look in rule.looks():
        w, lost, t = draw.multinomial(look.samples - seen, [wins, losses, 1 - wins - losses])
        counts, seen = Counts(counts.wins + int(w), counts.losses + int(lost), counts.ties + int(t)), look.samples
        decision = decide(counts, rule, look)
        if decision is not Decision.MORE:
            return decision
    return Decision.MORE


def share(decision: Decision, rule: Rule, disagreement: float, effect: float, runs: int, seed: int) -> float:
    draw = np.random.default_rng(seed)
    return sum(walk(rule, disagreement, effect, draw) is decision for _ in range(runs)) / runs


@pytest.mark.parametrize("samples", [100, 3000])
@pytest.mark.parametrize("disagreement", [0.03, 0.1, 0.3])
def test_a_pair_that_is_worse_by_the_margin_passes_less_often_than_alpha(samples: int, disagreement: float) -> None:
    rule = Rule(alpha=0.025, margin=0.03, samples=samples)
    assert share(Decision.PASS, rule, disagreement, -0.03, runs=1500, seed=samples) <= rule.alpha


@pytest.mark.parametrize("rungs", [1, 5])
@pytest.mark.parametrize("margin", [0.01, 0.03, 0.1])
@pytest.mark.parametrize("samples", [40, 100, 400])
def test_the_looks_together_keep_the_level_exactly_where_pairs_differ_on_up_to_half(
    rungs: int, margin: float, samples: int
) -> None:
    """No simulation: the chances of all counts, of which each look lets some pass, added up."""
    rule = Rule.for_policy(0.95, margin, samples, rungs)
    for differ in {margin, 1.5 * margin, 0.1, 0.3, 0.5}:
        assert sum(chance_of_passing(look, margin, differ) for look in rule.looks()) <= 1.01 * rule.alpha


def chance_of_passing(look: Look, margin: float, differ: float) -> float:
    """Of a pair that loses exactly the margin, at one look."""
    n, win, lose, total = look.samples, (differ - margin) / 2, (differ + margin) / 2, 0.0
    for losses in range(int(binom.ppf(1 - 1e-10, n, lose)) + 1):
        enough = bisect_left(
            range(n - losses + 1),
            True,
            key=lambda wins, losses=losses: Counts(wins, losses, n - wins - losses).exceeds(-margin, look.alpha),
        )
        total += binom.pmf(losses, n, lose) * binom.sf(enough - 1, n - losses, win / (1 - lose))
    return float(total)


def test_equal_pairs_with_ten_percent_disagreement_pass_comfortably() -> None:
    assert share(Decision.PASS, RULE, 0.1, 0.0, runs=200, seed=1) >= 0.95


def test_a_clear_loss_fails_and_is_never_passed() -> None:
    assert share(Decision.FAIL, RULE, 0.12, -0.08, runs=200, seed=2) >= 0.95


def test_levels_of_the_looks_add_up_to_the_rungs_share_of_the_budget() -> None:
    rule = Rule.for_policy(confidence=0.95, margin=0.03, samples=777, rungs=2)
    looks = rule.looks()
    assert math.isclose(sum(look.alpha for look in looks), 0.025)
    assert [look.samples for look in looks] == sorted({look.samples for look in looks})
    assert looks[-1].samples == 777


def test_no_disagreement_at_all_still_has_a_real_interval() -> None:
    counts = Counts(ties=3000)
    low, high = counts.lower_end(0.02), counts.upper_end(0.02)
    assert -0.01 < low < 0 < high < 0.01
    assert math.isclose(low, -high)
    assert Counts(ties=30).lower_end(0.02) < -0.05


@pytest.mark.parametrize("counts", [Counts(7, 25, 68), Counts(0, 3, 97), Counts(12, 0, 400), Counts(40, 41, 9)])
@pytest.mark.parametrize("difference", [-0.2, -0.03, 0.05])
def test_the_score_uses_the_constrained_maximum_of_the_likelihood(counts: Counts, difference: float) -> None:
    n, gap = counts.samples, counts.wins - counts.losses - counts.samples * difference

    def minus_log_likelihood(losses: float) -> float:
        shares = (losses + difference, losses, 1 - 2 * losses - difference)
        pairs = zip((counts.wins, counts.losses, counts.ties), shares, strict=True)
        return -sum(k * math.log(max(p, 1e-300)) for k, p in pairs if k)

    bounds = (max(0.0, -difference), (1 - difference) / 2)
    best = minimize_scalar(minus_log_likelihood, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
    variance = n * (2 * best + difference * (1 - difference))
    assert math.isclose(score(counts, difference), gap / math.sqrt(variance), rel_tol=1e-3, abs_tol=1e-6)


def _gains(samples: int, mean: float) -> Gains:
    """Skewed: most are a little above the mean, one in ten far below."""
    return Gains([mean - 0.72 if i % 10 == 3 else mean + 0.08 for i in range(samples)], bound=1.0)


EVIDENCE: list[Evidence] = [
    *(Counts(5, 9, 400), Counts(30, 12, 958), Counts(3, 60, 500), Counts(0, 0, 300)),
    *(Agreements(300, 0), Agreements(990, 10), Agreements(950, 50), Agreements(0, 12), Agreements(970, 30)),
    *(_gains(300, 0.0), _gains(1000, 0.05), _gains(1000, -0.2), Gains([0.0] * 400, 1.0), Gains([-0.001] * 900, 5.0)),
]


@pytest.mark.parametrize("evidence", EVIDENCE, ids=lambda e: f"{type(e).__name__}-{e.samples}-{e.gain:.3f}")
def test_the_decision_is_where_the_interval_lies(evidence: Evidence) -> None:
    for look in RULE.looks()[::2]:
        low, high = evidence.lower_end(look.alpha), evidence.upper_end(look.alpha)
        expected = Decision.PASS if low > -0.03 else Decision.FAIL if high < -0.03 else Decision.MORE
        assert decide(evidence, RULE, look) is expected
        assert low <= evidence.gain <= high


def test_undecided_says_how_many_examples_would_do() -> None:
    counts = Counts(40, 60, 900)
    rule = Rule(0.025, 0.03, 1000)
    assert decide(counts, rule, rule.looks()[-1]) is Decision.MORE
    needed = samples_needed(counts, rule)
    assert needed is not None
    assert 1000 < needed < 10_000
    assert samples_needed(Counts(10, 60, 930), rule) is None


@pytest.mark.parametrize("evidence", [Agreements(980, 20), _gains(1000, -0.005), Gains([0.0] * 300, 5.0)])
def test_about_as_many_samples_as_are_said_to_be_needed_are_enough(evidence: Evidence) -> None:
    needed = samples_needed(evidence, replace(RULE, samples=evidence.samples))
    assert needed is not None
    level = RULE.looks()[-1].alpha
    assert evidence.samples < needed < 20_000
    assert not _repeated(evidence, needed // 2).exceeds(-RULE.margin, level)
    assert _repeated(evidence, 2 * needed).exceeds(-RULE.margin, level)


def _repeated(evidence: Evidence, samples: int) -> Evidence:
    if isinstance(evidence, Gains):
        return Gains([evidence.values[i % evidence.samples] for i in range(samples)], evidence.bound)
    assert isinstance(evidence, Agreements)
    different = round(evidence.different * samples / evidence.samples)
    return Agreements(samples - different, different)


def test_counts_are_of_pairs() -> None:
    pairs = [(True, True), (True, False), (False, True), (False, True), (False, False)]
    assert Counts().add(pairs) == Counts(wins=2, losses=1, ties=2)
    assert math.isclose(Counts().add(pairs).gain, 0.2)
