"""Evidence that is not right or wrong twice: exact levels, by enumeration and beside scipy's exact binomial test."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, ttest_1samp

from readapt_runtime.adapt.gate import Agreements, Gains
from readapt_runtime.adapt.gate.means import rejects

DISTRIBUTIONS = {
    "rare total losses": ((-1.0, 0.0, 0.25), (0.08, 0.80, 0.12)),
    "fair coin": ((-1.0, 0.5, 1.0), (0.5, 0.1, 0.4)),
    "frequent small losses": ((-0.1, 0.0, 1.0), (0.7, 0.28, 0.02)),
}


@pytest.mark.parametrize("alpha", [0.3, 0.1, 0.02])
@pytest.mark.parametrize(("values", "chances"), DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_a_bet_on_a_true_null_wins_with_a_chance_of_at_most_alpha(
    values: tuple[float, ...], chances: tuple[float, ...], alpha: float
) -> None:
    """Exactly: the sum over all sequences of eight gains whose mean is the null."""
    null = math.fsum(v * c for v, c in zip(values, chances, strict=True))
    sequences = np.array(list(itertools.product(range(3), repeat=8)))
    chance = np.array(chances)[sequences].prod(axis=1)
    gains = np.array(values)[sequences]
    assert chance[rejects(gains, null, 1.0, alpha)].sum() <= alpha
    assert chance[rejects(-gains, -null, 1.0, alpha)].sum() <= alpha


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(0.01, 1), min_size=3, max_size=3),
    st.tuples(st.floats(-1, -0.2), st.floats(-0.2, 0.3), st.floats(0.3, 1)),
    st.floats(0.01, 0.4),
)
def test_the_level_holds_for_any_distribution(
    weights: list[float], values: tuple[float, float, float], alpha: float
) -> None:
    chances = np.array(weights) / sum(weights)
    null = float(chances @ np.array(values))
    sequences = np.array(list(itertools.product(range(3), repeat=6)))
    chance = chances[sequences].prod(axis=1)
    won = rejects(np.array(values)[sequences], null, 1.0, alpha)
    assert chance[won].sum() <= alpha * (1 + 1e-9)


def test_a_t_test_would_pass_what_the_bet_does_not() -> None:
    """Losses that are rare and total: in forty examples three in ten samples have none."""
    draw = np.random.default_rng(5)
    gains = np.where(draw.random((4000, 40)) < 0.03, -1.0, draw.normal(0, 0.01, (4000, 40)))
    found = ttest_1samp(gains, -0.03, axis=1, alternative="greater").pvalue <= 0.05
    assert found.mean() > 0.2
    assert rejects(np.maximum(gains, -1.0), -0.03, 1.0, 0.05).mean() <= 0.05


def test_with_many_examples_a_bet_is_nearly_as_strong_as_a_z_test() -> None:
    draw = np.random.default_rng(1)
    gains = np.clip(draw.normal(0.0, 0.3, (400, 3000)), -1, 1)
    z = 0.03 * math.sqrt(3000) / 0.3
    power_of_z = 0.5 * math.erfc((2.3263 - z) / math.sqrt(2))
    assert rejects(gains, -0.03, 1.0, 0.01).mean() > power_of_z - 0.06


@pytest.mark.parametrize(("bound", "alpha"), [(1.0, 0.02), (5.0, 0.01)])
def test_equal_answers_pass_once_a_loss_that_rare_would_have_shown(bound: float, alpha: float) -> None:
    """A loss of ``bound`` in a share margin / bound of all examples stays unseen with a chance of alpha until then."""
    least = math.log(1 / alpha) * bound / 0.03
    enough, few = Gains([0.0] * round(1.1 * least), bound), Gains([0.0] * round(0.9 * least), bound)
    assert enough.exceeds(-0.03, alpha)
    assert not few.exceeds(-0.03, alpha)
    assert -0.04 < few.lower_end(alpha) < -0.03 < enough.lower_end(alpha) < 0 < enough.upper_end(alpha) < 0.04


@pytest.mark.parametrize("alpha", [0.05, 0.003])
@pytest.mark.parametrize("evidence", [Agreements(100, 0), Agreements(97, 3), Agreements(0, 20), Agreements(2900, 100)])
def test_agreement_is_tested_exactly(evidence: Agreements, alpha: float) -> None:
    found = binomtest(evidence.different, evidence.samples)
    interval = found.proportion_ci(1 - 2 * alpha, method="exact")
    assert evidence.lower_end(alpha) == pytest.approx(-interval.high)
    assert evidence.upper_end(alpha) == pytest.approx(-interval.low)
    for gain in (-0.2, -0.03, -0.001):
        less = binomtest(evidence.different, evidence.samples, -gain, alternative="less").pvalue
        more = binomtest(evidence.different, evidence.samples, -gain, alternative="greater").pvalue
        assert evidence.exceeds(gain, alpha) is bool(less <= alpha)
        assert evidence.falls_short(gain, alpha) is bool(more <= alpha)


@pytest.mark.parametrize("evidence", [Agreements(), Gains([], 1.0)])
def test_nothing_seen_decides_nothing(evidence: Agreements | Gains) -> None:
    assert (evidence.samples, evidence.gain) == (0, 0.0)
    assert not evidence.exceeds(-0.03, 0.05)
    assert not evidence.falls_short(-0.03, 0.05)
