"""The workload generator: S-LoRA's own traces, and the distributions that it promises."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from traffic import SETTINGS, Arrival, BadTraffic, Profile, generate, main, read_trace, write_trace

MANY = Profile(adapters=50, rate=20.0, duration_s=1000.0)
P_VALUE = 1e-3
"""Seeds are fixed: a distribution that passes once passes always."""

RESOLUTION_S = 1e-6
"""Bursty gaps below it drown in the sum that the times are."""

SLORA_FIRST = [(0.159846, 74, 12, 410), (3.08561, 190, 473, 43), (3.363331, 146, 99, 292), (3.663512, 119, 177, 195)]
SLORA_LAST = [(353.651441, 0, 154, 478), (353.652065, 0, 119, 33), (353.755217, 0, 388, 489)]


def _rows(arrivals: list[Arrival]) -> list[tuple[float, int | None, int, int]]:
    return [(round(a.at, 6), a.adapter, a.prompt_tokens, a.output_tokens) for a in arrivals]


def test_a_trace_is_request_by_request_that_of_slora() -> None:
    """Expected values printed by ``generate_requests`` of S-LoRA's ``benchmarks/trace.py`` with its seed 42."""
    assert _rows(generate(Profile(adapters=200, alpha=1, rate=2, cv=1, duration_s=300)))[:4] == SLORA_FIRST
    assert _rows(generate(Profile(adapters=200, alpha=0.3, rate=2, cv=4, duration_s=300)))[-3:] == SLORA_LAST


@pytest.mark.parametrize("cv", [0.5, 1, 2, 4, 8])
def test_gaps_follow_the_gamma_distribution_of_the_rate_and_cv(cv: float) -> None:
    arrivals = generate(Profile(rate=20.0, cv=cv, duration_s=1000.0), seed=1)
    gaps, law = np.diff([a.at for a in arrivals], prepend=0.0), stats.gamma(1 / cv**2, scale=cv**2 / 20.0)
    long, below = gaps[gaps > RESOLUTION_S], float(law.cdf(RESOLUTION_S))

    assert stats.binomtest(len(gaps) - len(long), len(gaps), below).pvalue > P_VALUE
    assert stats.kstest((law.cdf(long) - below) / (1 - below), "uniform").pvalue > P_VALUE


@pytest.mark.parametrize("alpha", [0.1, 0.3, 0.6, 1.0])
def test_adapter_k_is_asked_with_the_share_of_the_power_law(alpha: float) -> None:
    arrivals = generate(Profile(adapters=20, alpha=alpha, rate=20.0, duration_s=1000.0), seed=2)
    counts = np.bincount([a.adapter for a in arrivals if a.adapter is not None], minlength=20)
    edges = np.linspace(0, 1, 21) ** alpha  # P(x < k/n) of a power law on [0, 1]

    assert stats.chisquare(counts, np.diff(edges) * len(arrivals)).pvalue > P_VALUE


def test_lengths_are_uniform_without_the_upper_bound() -> None:
    arrivals = generate(MANY, seed=3)
    for lengths in ([a.prompt_tokens for a in arrivals], [a.output_tokens for a in arrivals]):
        assert (min(lengths), max(lengths)) == (8, 511)
        assert stats.chisquare(np.bincount(lengths, minlength=512)[8:]).pvalue > P_VALUE


@given(
    adapters=st.integers(1, 3000),
    alpha=st.floats(0.05, 4),
    rate=st.floats(0.1, 50),
    cv=st.floats(0.25, 8),
    seed=st.integers(0, 2**32 - 1),
    lengths=st.floats(0.001, 1),
)
def test_any_profile_gives_a_valid_trace_and_the_same_again(
    adapters: int, alpha: float, rate: float, cv: float, seed: int, lengths: float
) -> None:
    profile = Profile(adapters, alpha, rate, cv, duration_s=20.0).scaled(lengths=lengths)
    arrivals = generate(profile, seed)

    assert arrivals == generate(profile, seed)
    assert len(arrivals) == math.floor(rate * 20.0)
    assert all(a.at <= b.at for a, b in pairwise(arrivals))
    for a in arrivals:
        assert a.adapter is not None
        assert 0 <= a.adapter < adapters
        assert profile.input_range[0] <= a.prompt_tokens < profile.input_range[1]
        assert profile.output_range[0] <= a.output_tokens < profile.output_range[1]


def test_scaling_keeps_the_shape_and_takes_fractions() -> None:
    small = Profile(alpha=0.3, cv=4).scaled(lengths=0.125, duration=0.5, rate=0.25)

    assert small == Profile(alpha=0.3, cv=4, rate=0.5, duration_s=150.0, input_range=(1, 64), output_range=(1, 64))


def test_a_trace_file_is_read_back_and_a_wrong_one_names_its_line(tmp_path: Path) -> None:
    arrivals = [*generate(Profile(duration_s=5.0)), Arrival(1e3, None, 4, 4)]
    path = tmp_path / "trace.jsonl"
    path.write_text(write_trace(arrivals))
    assert read_trace(path) == arrivals

    path.write_text(write_trace([Arrival(2.0, 0, 1, 1), Arrival(1.0, 0, 1, 1)]))
    with pytest.raises(BadTraffic, match=r"trace\.jsonl:2"):
        read_trace(path)
    path.write_text('{"at": 1}\n')
    with pytest.raises(BadTraffic, match=r"trace\.jsonl:1"):
        read_trace(path)


@pytest.mark.parametrize(
    "line",
    [
        '{"at": "x", "adapter": 0, "prompt_tokens": 1, "output_tokens": 1}',
        '{"at": 0.0, "adapter": "q", "prompt_tokens": 1, "output_tokens": 1}',
        '{"at": 0.0, "adapter": -1, "prompt_tokens": 1, "output_tokens": 1}',
        '{"at": 0.0, "adapter": 0, "prompt_tokens": -4, "output_tokens": 1}',
        '{"at": 0.0, "adapter": 0, "prompt_tokens": 1, "output_tokens": 1.5}',
        '{"at": NaN, "adapter": 0, "prompt_tokens": 1, "output_tokens": 1}',
    ],
)
def test_an_arrival_that_cannot_be_names_its_line(line: str, tmp_path: Path) -> None:
    (tmp_path / "trace.jsonl").write_text(line)
    with pytest.raises(BadTraffic, match=r"trace\.jsonl:1: an arrival"):
        read_trace(tmp_path / "trace.jsonl")


def test_no_trace_and_an_empty_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadTraffic, match="No such file"):
        read_trace(tmp_path / "nowhere")
    (tmp_path / "empty").write_text("")
    with pytest.raises(BadTraffic, match="no arrival"):
        read_trace(tmp_path / "empty")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--rate", "0"],
        ["--cv", "-1"],
        ["--adapters", "0"],
        ["--rate", "inf"],
        ["--lengths", "nan"],
        ["--lengths", "0"],
        ["--duration", "0.1"],
        ["--seed", "-1"],
    ],
    ids=" ".join,
)
def test_the_command_refuses_what_makes_no_sense_in_one_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert ": error: " in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("change", [{"rate": 0}, {"cv": -1}, {"adapters": 0}, {"input_range": (9, 9)}], ids=str)
def test_a_profile_that_makes_no_sense_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(BadTraffic):
        Profile(**change)  # type: ignore[arg-type]


def test_the_command_prints_a_trace_and_says_what_to_serve(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--setting", "S2", "--adapters", "5", "--duration", "10", "--lengths", "0.1"]) == 0
    out, told = capsys.readouterr()
    (tmp_path / "t").write_text(out)

    assert len(read_trace(tmp_path / "t")) == 20
    assert told == "S2: Llama-7B, adapters of ranks 64, 32, 16, 8, 64, … in turn\n"
    assert SETTINGS["S4"].ranks == (64, 32, 16)
