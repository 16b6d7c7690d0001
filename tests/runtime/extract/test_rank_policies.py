"""Which rank each module gets, against the definitions of the targets and against brute force."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from readapt_runtime.extract import RankPolicy
from readapt_runtime.extract.budget import spend
from readapt_runtime.extract.ranks import BadPolicy, Spectrum, serving_ranks

SERVED = (8, 16, 32, 64, 128, 256, 512)


def spectrum(values: torch.Tensor, shape: tuple[int, int] = (600, 400), tail: float = 0.0) -> Spectrum:
    """The leading ``values`` of a change that has ``tail`` more energy outside of them."""
    return Spectrum(shape, values, float((values.double().square().sum() + tail).sqrt()))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fixed": 8, "energy": 0.5},
        {"relative_error": 0.3, "budget": 1000},
        {"fixed": 8, "energy": 0.5, "relative_error": 0.3, "budget": 1000},
        {"fixed": 65},
        {"fixed": 0},
        {"energy": 0.0},
        {"energy": 1.5},
        {"energy": math.nan},
        {"relative_error": 0.0},
        {"relative_error": 1.0},
        {"relative_error": math.nan},
        {"budget": 0},
        {"budget": (1 << 40) + 1},
        {"fixed": 8, "max_rank": 513},
    ],
    ids=str,
)
def test_a_policy_that_asks_for_nothing_possible_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(BadPolicy):
        RankPolicy(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("energy", "rank"), [(1e-12, 8), (1.0, 64)])
def test_the_ends_of_the_energy_scale(energy: float, rank: int) -> None:
    choice = RankPolicy(energy=energy).choose({"m": spectrum(torch.linspace(2, 1, 64))})["m"]
    assert (choice.rank, choice.capped) == (rank, False)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 200), st.floats(0.01, 0.99), st.floats(0, 3), st.integers(0, 10_000))
def test_a_relative_error_gets_the_smallest_served_rank_whose_rest_is_that_small(
    count: int, allowed: float, tail: float, seed: int
) -> None:
    values = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).sort(descending=True)
    change = spectrum(values.values, tail=tail)
    choice = RankPolicy(relative_error=allowed, max_rank=128).choose({"m": change})["m"]
    rest = [math.sqrt(float(change.values[rank:].square().sum()) + tail) / change.norm for rank in range(count + 1)]
    fitting = [rank for rank in range(1, min(count, 128) + 1) if rest[rank] <= allowed]
    if not fitting:
        assert (choice.rank, choice.capped) == (min(count, 128), True)
        return
    assert choice.rank == min(next(rank for rank in SERVED if rank >= fitting[0]), count)
    assert not choice.capped
    assert choice.energy == pytest.approx(1 - rest[choice.rank] ** 2, abs=1e-9)


def test_ranks_above_64_are_rounded_to_served_ones_too() -> None:
    choice = RankPolicy(energy=0.7, max_rank=512).choose({"m": spectrum(torch.ones(100))})["m"]
    assert choice.rank == 100
    choice = RankPolicy(energy=0.35, max_rank=512).choose({"m": spectrum(torch.ones(300))})["m"]
    assert choice.rank == 128


@st.composite
def modules(draw: st.DrawFn) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    count = draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    gains, costs = {}, {}
    for name in "abcd"[:count]:
        values = torch.rand(draw(st.integers(1, 3)), generator=generator, dtype=torch.float64)
        gains[name] = values.sort(descending=True).values
        costs[name] = draw(st.integers(1, 6))
    return gains, costs


@settings(max_examples=100, deadline=None)
@given(modules(), st.integers(0, 40))
def test_what_a_budget_keeps_is_the_best_but_for_the_step_that_did_not_fit(
    given_: tuple[dict[str, torch.Tensor], dict[str, int]], budget: int
) -> None:
    """Against all possible ranks. Greedy in the order of gain per parameter loses at most the one step it breaks at."""
    gains, costs = given_
    ranks = spend(budget, gains, costs, {name: range(1, gain.numel() + 1) for name, gain in gains.items()})

    def kept(chosen: dict[str, int]) -> float:
        return sum(float(gains[name][:rank].sum()) for name, rank in chosen.items())

    def price(chosen: dict[str, int]) -> int:
        return sum(rank * costs[name] for name, rank in chosen.items())

    every = itertools.product(*(range(gain.numel() + 1) for gain in gains.values()))
    affordable = [c for c in (dict(zip(gains, ranks_, strict=True)) for ranks_ in every) if price(c) <= budget]
    best = max(kept(chosen) for chosen in affordable)
    assert price(ranks) <= budget
    assert kept(ranks) >= best - max(float(gain.max()) for gain in gains.values()) - 1e-12
    if len(set(costs.values())) == 1:
        assert kept(ranks) == pytest.approx(best)


def test_a_budget_goes_where_a_parameter_keeps_most() -> None:
    loud, quiet = torch.full((64,), 4.0), torch.full((64,), 1.0)
    spectra = {
        "loud": spectrum(loud, (100, 100)),
        "quiet": spectrum(quiet, (100, 100)),
        "loud and wide": spectrum(loud, (10_000, 10_000)),
    }
    assert {n: c.rank for n, c in RankPolicy(budget=64 * 200).choose(spectra).items()} == {
        "loud": 64,
        "quiet": 0,
        "loud and wide": 0,
    }
    chosen = RankPolicy(budget=64 * 200 + 20 * 200).choose(spectra)
    assert (chosen["loud"].rank, chosen["quiet"].rank) == (64, 16)
    assert chosen["quiet"].energy == pytest.approx(16 / 64)
    assert chosen["loud and wide"].energy == 0.0


def test_ranks_of_a_budget_are_served_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    values = [torch.rand(48, generator=generator).sort(descending=True).values for _ in range(9)]
    spectra = {str(at): spectrum(value, (60 + at, 50)) for at, value in enumerate(values)}
    for budget in (1_000, 5_000, 20_000, 1 << 40):
        chosen = RankPolicy(budget=budget).choose(spectra)
        assert {choice.rank for choice in chosen.values()} <= {0, 8, 16, 32, 48}
        assert sum(c.rank * sum(spectra[n].shape) for n, c in chosen.items()) <= budget
    assert {choice.rank for choice in chosen.values()} == {48}


def test_a_budget_is_not_spent_on_nothing() -> None:
    """Singular values that are rounding are zero when they come."""
    spectra = {
        "a": spectrum(torch.tensor([2.0] * 6 + [0.0] * 58)),
        "b": spectrum(torch.tensor([1.0] * 20 + [0.0] * 44)),
    }
    chosen = RankPolicy(budget=1 << 40).choose(spectra)
    assert {name: choice.rank for name, choice in chosen.items()} == {"a": 8, "b": 32}
    assert all(choice.energy == pytest.approx(1.0) for choice in chosen.values())


def test_a_budget_too_small_for_any_module_says_what_it_would_take() -> None:
    spectra = {"a": spectrum(torch.ones(64), (100, 50)), "b": spectrum(torch.ones(64), (40, 50))}
    with pytest.raises(BadPolicy, match="a budget of 719 parameters holds no module; the smallest takes 720"):
        RankPolicy(budget=719).choose(spectra)
    assert RankPolicy(budget=720).choose(spectra)["b"].rank == 8


@pytest.mark.parametrize(("most", "ranks"), [(3, (3,)), (8, (8,)), (12, (8, 12)), (64, (8, 16, 32, 64))])
def test_a_module_can_have_the_served_ranks_and_all_it_has(most: int, ranks: tuple[int, ...]) -> None:
    assert serving_ranks(most) == ranks
