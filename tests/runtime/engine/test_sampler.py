"""Sampling draws from the distribution that temperature and top_p describe."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chisquare

from readapt_runtime.engine.core import Request, SamplingParams, Sequence
from readapt_runtime.engine.draws import Draws
from readapt_runtime.engine.sampler import UNSOUND, pick
from readapt_runtime.model.cpu_ops import CpuOps
from readapt_runtime.model.ops import Ops, TorchOps

LOGITS = torch.tensor([[2.0, 1.0, 0.5, -1.0, 0.0]])


def _sequence(temperature: float, top_p: float = 1.0, seed: int | None = 3) -> Sequence:
    params = SamplingParams(max_tokens=1, temperature=temperature, top_p=top_p, seed=seed)
    return Sequence(Request((1,), params, lambda event: None), [1])


@pytest.fixture(params=["torch", "compiled"])
def ops(request: pytest.FixtureRequest) -> Ops:
    return TorchOps(1e-6) if request.param == "torch" else CpuOps(1e-6, torch.float32)


def _sample(ops: Ops, logits: torch.Tensor, seqs: list[Sequence]) -> list[int]:
    return pick(logits, *ops.greedy(logits), Draws.of(seqs), ops.draw).tolist()


def _frequencies(ops: Ops, seq: Sequence, draws: int) -> torch.Tensor:
    drawn = [_sample(ops, LOGITS, [seq])[0] for _ in range(draws)]
    return torch.bincount(torch.tensor(drawn), minlength=5) / draws


def test_frequencies_follow_the_softmax_at_the_temperature(ops: Ops) -> None:
    draws = 1000
    expected = torch.softmax(LOGITS[0] / 0.7, dim=-1)
    error = (_frequencies(ops, _sequence(0.7), draws) - expected).abs()
    assert bool((error < 4 * (expected * (1 - expected) / draws).sqrt() + 1e-3).all())


def test_top_p_keeps_the_smallest_set_that_reaches_it(ops: Ops) -> None:
    probs = torch.softmax(LOGITS[0], dim=-1)  # 0.57, 0.21, 0.13, 0.03, 0.08
    found = _frequencies(ops, _sequence(1.0, top_p=0.7), 600)
    assert found[2:].sum() == 0
    assert abs(float(found[0]) - float(probs[0] / (probs[0] + probs[1]))) < 0.07


def test_the_same_seed_gives_the_same_draws_whoever_shares_the_batch(ops: Ops) -> None:
    alone = _sequence(1.0, seed=11)
    first = [_sample(ops, LOGITS, [alone])[0] for _ in range(20)]
    mixed, other = _sequence(1.0, seed=11), _sequence(1.3, seed=12)
    second = [_sample(ops, LOGITS.repeat(3, 1), [other, _sequence(0.0), mixed])[2] for _ in range(20)]
    assert first == second


def test_greedy_takes_the_largest(ops: Ops) -> None:
    assert _sample(ops, LOGITS.repeat(2, 1), [_sequence(0.0), _sequence(0.0, seed=None)]) == [0, 0]


@pytest.mark.parametrize("top_p", [1e-300, 1e-46, 1e-45, 1e-38])
def test_a_top_p_below_every_probability_keeps_the_first_token(ops: Ops, top_p: float) -> None:
    """The API takes any number above 0; the first two are 0 in float32."""
    logits = torch.tensor([[0.0, 2.0, 2.0], [3.0, 1.0, 0.0]])
    assert _sample(ops, logits, [_sequence(1.0, top_p), _sequence(2.0, top_p)]) == [1, 0]


def test_large_logits_at_a_small_temperature_are_drawn_from(ops: Ops) -> None:
    logits = torch.tensor([[1e35, 3e35, -1e35], [0.0, 1.0, 0.0]])
    assert _sample(ops, logits, [_sequence(1e-4), _sequence(1e-4)]) == [1, 1]


def test_rows_that_are_not_finite_have_no_token_and_change_no_other(ops: Ops) -> None:
    logits = LOGITS.repeat(4, 1)
    logits[1, 2], logits[3, 0] = float("nan"), float("-inf")
    first, second = _sequence(1.0, seed=7), _sequence(1.0, seed=7)
    alone = _sample(ops, LOGITS, [first])
    assert _sample(ops, logits, [second, _sequence(1.0), _sequence(0.0), _sequence(0.0)]) == [
        *alone,
        UNSOUND,
        0,
        UNSOUND,
    ]


def _draws(point: torch.Tensor, temperature: float, top_p: float) -> Draws:
    """Many of one row."""
    ones = torch.ones(len(point))
    rows = torch.zeros(len(point), dtype=torch.int64)
    return Draws(len(point) if top_p < 1 else 0, rows, temperature * ones, top_p * ones, point)


def _expected(logits: list[float], temperature: float, top_p: float) -> torch.Tensor:
    """Probabilities ``[vocab]`` in float64 of the likeliest that reach top_p, first ones first among equals."""
    probs = (torch.tensor(logits, dtype=torch.float64) / temperature).softmax(dim=-1).tolist()
    kept, mass = [0.0] * len(probs), 0.0
    for token in sorted(range(len(probs)), key=lambda t: (-logits[t], t)):
        kept[token] = probs[token]
        mass += probs[token]
        if mass >= top_p:
            break
    return torch.tensor(kept, dtype=torch.float64) / mass


CUTS = [(1.0, 1.0), (0.7, 1.0), (1.0, 0.9), (1.3, 0.999), (0.5, 0.3)]


@pytest.mark.parametrize(("temperature", "top_p"), CUTS)
def test_draws_are_of_the_distribution(ops: Ops, temperature: float, top_p: float) -> None:
    logits = (4 * torch.randn(1, 300, generator=torch.Generator().manual_seed(1))).round() / 2  # with ties
    expected = _expected(logits[0].tolist(), temperature, top_p)
    count = 20_000
    points = torch.rand(count, generator=torch.Generator().manual_seed(2))
    drawn = ops.draw(logits, logits.argmax(dim=-1), _draws(points, temperature, top_p))
    seen = torch.bincount(drawn, minlength=300)
    assert not seen[expected == 0].any()
    often = expected * count >= 5
    rare = seen[~often].sum(), expected[~often].sum() * count
    found = [*seen[often].tolist(), float(rare[0])]
    awaited = [*(expected[often] * count).tolist(), float(rare[1])]
    if not rare[1]:
        found, awaited = found[:-1], awaited[:-1]
    assert chisquare(found, awaited).pvalue > 0.01


@pytest.mark.parametrize(("temperature", "top_p"), CUTS)
def test_evenly_spaced_points_give_each_token_its_share(ops: Ops, temperature: float, top_p: float) -> None:
    logits = (4 * torch.randn(1, 300, generator=torch.Generator().manual_seed(1))).round() / 2
    expected = _expected(logits[0].tolist(), temperature, top_p)
    count = 1 << 13
    drawn = ops.draw(logits, logits.argmax(dim=-1), _draws((torch.arange(count) + 0.5) / count, temperature, top_p))
    assert bool((drawn.diff() >= 0).all()), "in the order of the vocabulary"
    assert float((torch.bincount(drawn, minlength=300) - expected * count).abs().max()) <= 1.0


@pytest.mark.parametrize("top_p", [0.25, 0.5, 0.7, 0.9999])
def test_of_equal_tokens_the_first_are_kept(ops: Ops, top_p: float) -> None:
    points = (torch.arange(1 << 11) + 0.5) / (1 << 11)
    drawn = ops.draw(torch.zeros(1, 1000), torch.zeros(1, dtype=torch.int64), _draws(points, 1.0, top_p))
    kept = -int(-1000 * torch.tensor(top_p).double() // 1)
    assert drawn.unique().tolist() == list(range(kept))


def test_a_row_is_drawn_alone_as_among_others_in_any_order(ops: Ops) -> None:
    logits = 3 * torch.randn(40, 5000, generator=torch.Generator().manual_seed(4))

    def sequences() -> list[Sequence]:
        return [_sequence((0.0, 0.8, 1.0)[i % 3], (1.0, 0.9)[i % 2], seed=i) for i in range(40)]

    together = _sample(ops, logits, sequences())
    assert together[::-1] == _sample(ops, logits.flip(0), sequences()[::-1])
    assert together == [_sample(ops, logits[i : i + 1], [seq])[0] for i, seq in enumerate(sequences())]
