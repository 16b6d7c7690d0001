"""The factored algebra against dense float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from readapt_runtime.lowrank import (
    LowRank,
    NotFinite,
    add,
    energy,
    inner,
    norm,
    project,
    recompress,
    scale,
    singular_values,
)

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
quick = settings(max_examples=25, deadline=None)


def dense(x: LowRank) -> torch.Tensor:
    return x.left.double() @ x.right.double()


@st.composite
def matrices(draw: st.DrawFn, rows: int | None = None, columns: int | None = None) -> LowRank:
    """Any shape and rank up to beyond min(shape): dependent, zero and tied directions among them."""
    m, n = rows or draw(st.integers(1, 9)), columns or draw(st.integers(1, 9))
    rank = draw(st.integers(0, 12))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    left = torch.randn(m, rank, generator=generator, dtype=torch.float64)
    right = torch.randn(rank, n, generator=generator, dtype=torch.float64)
    match draw(st.sampled_from(["any", "zero", "repeated", "tied"])):
        case "zero":
            left = left * 0
        case "repeated" if rank > 1:
            left[:, 1:] = left[:, :1]
        case "tied" if rank:
            left, right = torch.eye(m, rank, dtype=torch.float64), torch.eye(rank, n, dtype=torch.float64)
    dtype = draw(st.sampled_from(DTYPES))
    return LowRank(left.to(dtype), right.to(dtype))


@st.composite
def pairs(draw: st.DrawFn) -> tuple[LowRank, LowRank]:
    m, n = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    return draw(matrices(m, n)), draw(matrices(m, n))


def close(actual: torch.Tensor, expected: torch.Tensor, size: float) -> None:
    torch.testing.assert_close(actual, expected, rtol=2e-6, atol=2e-6 * max(size, 1e-30))


@quick
@given(pairs(), st.floats(-3, 3))
def test_sums_and_multiples_are_those_of_the_dense_matrices(xy: tuple[LowRank, LowRank], factor: float) -> None:
    x, y = xy
    size = float(dense(x).norm() * (1 + abs(factor)) + dense(y).norm())
    close(dense(add(x, y)), dense(x) + dense(y), size)
    close(dense(scale(x, factor)), factor * dense(x), size)
    assert add(x, y).rank == x.rank + y.rank


@quick
@given(pairs())
def test_inner_products_and_norms_are_those_of_the_dense_matrices(xy: tuple[LowRank, LowRank]) -> None:
    x, y = xy
    size = float(dense(x).norm() * dense(y).norm())
    assert inner(x, y) == pytest.approx(float((dense(x) * dense(y)).sum()), rel=1e-9, abs=1e-12 * size + 1e-300)
    assert norm(x) == pytest.approx(float(dense(x).norm()), rel=1e-9, abs=1e-12)


@quick
@given(matrices())
def test_the_norm_of_a_matrix_minus_itself_is_nothing_but_rounding(x: LowRank) -> None:
    difference = LowRank(torch.cat([x.left, x.left], dim=1), torch.cat([x.right, -x.right], dim=0))
    assert norm(difference) <= 1e-12 * max(float(dense(x).norm()), 1e-30)


@quick
@given(matrices(), st.integers(0, 12))
def test_singular_values_and_energy_are_those_of_the_dense_matrix(x: LowRank, rank: int) -> None:
    expected = torch.linalg.svdvals(dense(x))
    found = singular_values(x)
    padded = torch.zeros_like(expected)
    padded[: found.numel()] = found
    torch.testing.assert_close(padded, expected, rtol=1e-9, atol=1e-10)
    total = float(expected.square().sum())
    share = float(expected[:rank].square().sum()) / total if total > 1e-20 else 1.0
    assert energy(x, rank) == pytest.approx(share, abs=1e-9)


@quick
@given(matrices(), st.integers(0, 12))
def test_recompression_is_as_good_as_the_best_of_its_rank(x: LowRank, rank: int) -> None:
    """Eckart-Young: the error is that of the discarded singular values, also where values are tied."""
    small = recompress(x, rank)
    best = torch.linalg.svdvals(dense(x))[rank:].square().sum().sqrt()
    error = (dense(x) - dense(small)).norm()
    assert small.rank <= rank
    assert float(error) == pytest.approx(float(best), abs=3e-6 * max(float(dense(x).norm()), 1e-30))


@quick
@given(matrices(), st.integers(0, 12))
def test_both_factors_of_a_recompressed_matrix_have_the_same_norm(x: LowRank, rank: int) -> None:
    small = recompress(x, rank)
    torch.testing.assert_close(small.left.norm(), small.right.norm(), rtol=1e-4, atol=1e-6)


@quick
@given(matrices(), st.integers(1, 6), st.integers(0, 10_000))
def test_weighted_recompression_is_the_best_for_the_outputs(x: LowRank, rank: int, seed: int) -> None:
    """Against the dense optimum: truncate x·√C and divide back."""
    moments = torch.rand(x.shape[1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.01
    weighted = dense(x) * moments.sqrt()
    best = torch.linalg.svdvals(weighted)[rank:].square().sum().sqrt()
    error = ((dense(x) - dense(recompress(x, rank, moments))) * moments.sqrt()).norm()
    assert float(error) == pytest.approx(float(best), abs=3e-6 * max(float(weighted.norm()), 1e-30))


@quick
@given(matrices(), st.integers(1, 6), st.integers(1, 12), st.integers(0, 10_000))
def test_correlated_inputs_are_weighed_by_all_their_second_moments(x: LowRank, rank: int, seen: int, seed: int) -> None:
    """Against the dense optimum over the very inputs, fewer of them than there are channels among the cases."""
    inputs = torch.randn(x.shape[1], seen, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    outputs = dense(x) @ inputs
    best = torch.linalg.svdvals(outputs)[rank:].square().sum().sqrt()
    error = (outputs - dense(recompress(x, rank, inputs @ inputs.T)) @ inputs).norm()
    assert float(error) == pytest.approx(float(best), abs=2e-3 * max(float(outputs.norm()), 1e-30))


@quick
@given(matrices(), st.integers(1, 6), st.integers(0, 10_000))
def test_uncorrelated_inputs_are_their_mean_squares(x: LowRank, rank: int, seed: int) -> None:
    moments = torch.rand(x.shape[1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.01
    errors = [
        float(((dense(x) - dense(recompress(x, rank, form))) * moments.sqrt()).norm())
        for form in (moments, torch.diag(moments))
    ]
    assert errors[0] == pytest.approx(errors[1], abs=1e-5 * max(float(dense(x).norm()), 1e-30))


MOMENTS = {
    "negative": torch.tensor([1.0, -1.0, 1.0]),
    "too few": torch.ones(2),
    "of another width": torch.eye(2),
    "not symmetric": torch.triu(torch.ones(3, 3)),
    "not positive": torch.tensor([[1.0, 2.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 1.0]]),
}


@pytest.mark.parametrize("moments", MOMENTS.values(), ids=MOMENTS.keys())
def test_what_no_inputs_can_have_is_no_second_moment(moments: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"input moments must be \[3\] mean squares"):
        recompress(LowRank(torch.ones(3, 2), torch.ones(2, 3)), 1, moments)


def test_inputs_that_never_occur_cost_nothing_and_break_nothing() -> None:
    x = LowRank(torch.eye(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64))
    kept = dense(recompress(x, 2, torch.tensor([1.0, 1.0, 0.0, 0.0])))
    torch.testing.assert_close(kept, torch.diag(torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)))


@quick
@given(matrices(), st.integers(1, 5), st.integers(1, 5), st.integers(0, 10_000))
def test_projection_keeps_what_lies_in_the_spans_and_nothing_else(x: LowRank, k: int, j: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    columns = torch.randn(x.shape[0], k, generator=generator, dtype=torch.float64)
    rows = torch.randn(j, x.shape[1], generator=generator, dtype=torch.float64)
    left = columns @ torch.linalg.pinv(columns)
    right = torch.linalg.pinv(rows) @ rows
    size = float(dense(x).norm())
    close(dense(project(x, columns, rows)), left @ dense(x) @ right, size)
    close(dense(project(x, columns=columns)), left @ dense(x), size)
    close(dense(project(x, rows=rows)), dense(x) @ right, size)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_that_are_not_finite_are_refused(value: float, dtype: torch.dtype) -> None:
    whole = torch.ones(3, 2, dtype=dtype)
    broken = whole.clone()
    broken[1, 1] = value
    for left, right in ((broken, whole.T), (whole, broken.T)):
        with pytest.raises(NotFinite, match=r"NaN or infinite values in a matrix of shape \[[23], [23]\]"):
            LowRank(left, right)
    x = LowRank(whole, whole.T)
    with pytest.raises(NotFinite):
        recompress(x, 1, torch.tensor([1.0, value, 1.0]))
    with pytest.raises(NotFinite):
        project(x, columns=broken)
    with pytest.raises(NotFinite):
        scale(x, value)


def test_a_result_that_does_not_fit_its_dtype_is_refused() -> None:
    with pytest.raises(NotFinite):
        scale(LowRank(torch.full((2, 1), 1e30), torch.full((1, 2), 1e30)), 1e20)


def test_shapes_that_do_not_fit_are_refused() -> None:
    x, y = LowRank(torch.ones(3, 2), torch.ones(2, 3)), LowRank(torch.ones(2, 2), torch.ones(2, 3))
    with pytest.raises(ValueError, match="cannot be added"):
        add(x, y)
    with pytest.raises(ValueError, match="do not multiply"):
        LowRank(torch.ones(3, 2), torch.ones(3, 2))
