"""The paired sequential test against known truth and against an independent computation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from readapt_runtime.adapt.gate import Counts, Decision, Rule, decide, lower_end, samples_needed, score, upper_end

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
    low, high = lower_end(counts, 0.02), upper_end(counts, 0.02)
    assert -0.01 < low < 0 < high < 0.01
    assert math.isclose(low, -high)
    assert lower_end(Counts(ties=30), 0.02) < -0.05


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


@pytest.mark.parametrize("counts", [Counts(5, 9, 400), Counts(30, 12, 958), Counts(3, 60, 500), Counts(0, 0, 300)])
def test_the_decision_is_where_the_interval_lies(counts: Counts) -> None:
    for look in RULE.looks():
        low, high = lower_end(counts, look.alpha), upper_end(counts, look.alpha)
        expected = Decision.PASS if low > -0.03 else Decision.FAIL if high < -0.03 else Decision.MORE
        assert decide(counts, RULE, look) is expected


def test_undecided_says_how_many_examples_would_do() -> None:
    counts = Counts(40, 60, 900)
    last = Rule(0.025, 0.03, 1000).looks()[-1]
    assert decide(counts, RULE, last) is Decision.MORE
    needed = samples_needed(counts, RULE)
    assert needed is not None
    assert 1000 < needed < 10_000
    assert samples_needed(Counts(10, 60, 930), RULE) is None


def test_counts_are_of_pairs() -> None:
    pairs = [(True, True), (True, False), (False, True), (False, True), (False, False)]
    assert Counts().add(pairs) == Counts(wins=2, losses=1, ties=2)
    assert math.isclose(Counts().add(pairs).difference, 0.2)
