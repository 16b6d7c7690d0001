"""Sampling draws from the distribution that temperature and top_p describe."""

from __future__ import annotations

import pytest
import torch

from readapt_runtime.engine.core import Request, SamplingParams, Sequence
from readapt_runtime.engine.draws import Draws
from readapt_runtime.engine.sampler import UNSOUND, pick

LOGITS = torch.tensor([[2.0, 1.0, 0.5, -1.0, 0.0]])


def _sequence(temperature: float, top_p: float = 1.0, seed: int | None = 3) -> Sequence:
    params = SamplingParams(max_tokens=1, temperature=temperature, top_p=top_p, seed=seed)
    return Sequence(Request((1,), params, lambda event: None), [1])


def _sample(logits: torch.Tensor, seqs: list[Sequence]) -> list[int]:
    return pick(logits, logits.argmax(dim=-1), logits.isfinite().all(dim=-1), Draws.of(seqs)).tolist()


def _frequencies(seq: Sequence, draws: int) -> torch.Tensor:
    drawn = [_sample(LOGITS, [seq])[0] for _ in range(draws)]
    return torch.bincount(torch.tensor(drawn), minlength=5) / draws


def test_frequencies_follow_the_softmax_at_the_temperature() -> None:
    draws = 4000
    expected = torch.softmax(LOGITS[0] / 0.7, dim=-1)
    error = (_frequencies(_sequence(0.7), draws) - expected).abs()
    assert bool((error < 4 * (expected * (1 - expected) / draws).sqrt() + 1e-3).all())


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    probs = torch.softmax(LOGITS[0], dim=-1)  # 0.57, 0.21, 0.13, 0.03, 0.08
    found = _frequencies(_sequence(1.0, top_p=0.7), 2000)
    assert found[2:].sum() == 0
    assert abs(float(found[0]) - float(probs[0] / (probs[0] + probs[1]))) < 0.05


def test_the_same_seed_gives_the_same_draws_whoever_shares_the_batch() -> None:
    alone = _sequence(1.0, seed=11)
    first = [_sample(LOGITS, [alone])[0] for _ in range(20)]
    mixed, other = _sequence(1.0, seed=11), _sequence(1.3, seed=12)
    second = [_sample(LOGITS.repeat(3, 1), [other, _sequence(0.0), mixed])[2] for _ in range(20)]
    assert first == second


def test_greedy_takes_the_largest() -> None:
    assert _sample(LOGITS.repeat(2, 1), [_sequence(0.0), _sequence(0.0, seed=None)]) == [0, 0]


@pytest.mark.parametrize("top_p", [1e-300, 1e-46, 1e-45, 1e-38])
def test_a_top_p_below_every_probability_keeps_the_first_token(top_p: float) -> None:
    """The API takes any number above 0; the first two are 0 in float32."""
    logits = torch.tensor([[0.0, 2.0, 2.0], [3.0, 1.0, 0.0]])
    assert _sample(logits, [_sequence(1.0, top_p), _sequence(2.0, top_p)]) == [1, 0]


def test_large_logits_at_a_small_temperature_are_drawn_from() -> None:
    logits = torch.tensor([[1e35, 3e35, -1e35], [0.0, 1.0, 0.0]])
    assert _sample(logits, [_sequence(1e-4), _sequence(1e-4)]) == [1, 1]


def test_rows_that_are_not_finite_have_no_token_and_change_no_other() -> None:
    logits = LOGITS.repeat(4, 1)
    logits[1, 2], logits[3, 0] = float("nan"), float("-inf")
    first, second = _sequence(1.0, seed=7), _sequence(1.0, seed=7)
    alone = _sample(LOGITS, [first])
    assert _sample(logits, [second, _sequence(1.0), _sequence(0.0), _sequence(0.0)]) == [*alone, UNSOUND, 0, UNSOUND]
