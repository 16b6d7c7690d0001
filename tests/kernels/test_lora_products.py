"""Shrink and expand in the interpreter against a per-request loop in fp64."""

from __future__ import annotations

import pytest
import torch

from readapt_kernels.lora.tiles import TileTable
from readapt_testing.paged_lora import DOWN, GATE_UP, LIMITS, QKV, SMOL, Adapter, Bench, O, inputs, make_adapter

# Relative, in the Frobenius norm.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3}
LARGE = TileTable(small_tokens=0)

# Ranks that differ by slice, missing modules, an adapter without this linear; base rows before, between, behind.
MIXED = [{QKV: (3, 0, 16)}, {QKV: (0, 1, 0)}, {DOWN: (8,)}, {QKV: (8, 8, 8)}, {QKV: (0, 0, 24)}]
MIXED_ROWS = [(0, 2, 3), (1, 3, 5), (2, 6, 8), (3, 8, 26), (4, 26, 27)]
MIXED_TOKENS = 29


def mixed(dtype: torch.dtype) -> list[Adapter]:
    return [make_adapter(ranks, dtype, seed=i) for i, ranks in enumerate(MIXED)]


def assert_near(actual: torch.Tensor, expected: torch.Tensor, before: torch.Tensor) -> None:
    """Rows that no adapter touches are bit-equal; of the others the added part is right to rounding."""
    touched = (expected != before.double()).any(1)
    assert torch.equal(actual[~touched], before[~touched])
    error = (actual.double() - expected)[touched].norm() / expected[touched].norm()
    assert error <= TOLERANCE[actual.dtype]


@pytest.mark.parametrize("rank", [1, 3, 8, 16, 64, 96, 128])
def test_one_adapter_of_any_rank(dtype: torch.dtype, rank: int) -> None:
    bench = Bench([make_adapter({O: (rank,)}, dtype, seed=rank)])
    x, y = inputs(4, O, dtype)
    rows = [(0, 1, 4)]

    assert_near(bench.run(rows, O, x, y), bench.expected(rows, O, x, y), y)


@pytest.mark.parametrize("tiles", [TileTable(), LARGE], ids=["small tiles", "large tiles"])
def test_a_mixed_batch_with_base_rows_and_missing_modules(dtype: torch.dtype, tiles: TileTable) -> None:
    bench = Bench(mixed(dtype), tiles=tiles)
    x, y = inputs(MIXED_TOKENS, QKV, dtype)

    assert_near(bench.run(MIXED_ROWS, QKV, x, y), bench.expected(MIXED_ROWS, QKV, x, y), y)


def test_each_slice_and_adapter_is_right_by_itself(dtype: torch.dtype) -> None:
    bench = Bench(mixed(dtype))
    x, y = inputs(MIXED_TOKENS, QKV, dtype)
    actual, expected = bench.run(MIXED_ROWS, QKV, x, y), bench.expected(MIXED_ROWS, QKV, x, y)

    for i, start, stop in MIXED_ROWS:
        for first, size in zip(SMOL.linears[QKV].out_starts, SMOL.linears[QKV].out_sizes, strict=True):
            part = (slice(start, stop), slice(first, first + size))
            error = (actual[part].double() - expected[part]).norm() / expected[part].norm()
            assert error <= TOLERANCE[dtype], f"adapter {i}, columns from {first}"


@pytest.mark.parametrize("linear", [GATE_UP, DOWN], ids=["gate_up", "down"])
def test_other_widths_behind_other_factors_of_the_layer(dtype: torch.dtype, linear: int) -> None:
    ranks = {QKV: (3, 1, 0), O: (5,), GATE_UP: (8, 3), DOWN: (16,)}
    bench = Bench([make_adapter(ranks, dtype, seed=1)])
    x, y = inputs(3, linear, dtype)
    rows = [(0, 0, 3)]

    assert_near(bench.run(rows, linear, x, y), bench.expected(rows, linear, x, y), y)


@pytest.mark.parametrize(("rank", "columns"), [(11, 16), (27, 32), (59, 64), (64, 64), (65, 64), (96, 64), (128, 64)])
def test_large_tiles_of_every_width_over_more_rows_than_one(dtype: torch.dtype, rank: int, columns: int) -> None:
    bench = Bench([make_adapter({O: (rank,)}, dtype, seed=2)], tiles=LARGE)
    x, y = inputs(70, O, dtype)
    rows = [(0, 1, 70)]

    assert_near(bench.run(rows, O, x, y), bench.expected(rows, O, x, y), y)
    assert bench.kernels.layout.tiles.shrink(70, rank, SMOL.linears[O], SMOL.chunk).columns == columns


@pytest.mark.parametrize("split_width", [192, 64], ids=["3 splits", "9 splits"])
def test_splits_sum_to_the_product_and_leave_the_counters_at_zero(dtype: torch.dtype, split_width: int) -> None:
    bench = Bench([make_adapter({O: (20,)}, dtype, seed=3)], tiles=TileTable(split_width=split_width))
    x, y = inputs(17, O, dtype)
    rows = [(0, 0, 17)]

    for _ in range(2):  # a replay finds the counters as the first run did
        assert_near(bench.run(rows, O, x, y), bench.expected(rows, O, x, y), y)
        assert not bench.kernels.counters.any()


def test_a_layer_without_factors_is_left_alone(dtype: torch.dtype) -> None:
    bench = Bench([make_adapter({O: (8,)}, dtype, seed=4, layers=0b10)])
    x, y = inputs(2, O, dtype)
    rows = [(0, 0, 2)]

    assert torch.equal(bench.run(rows, O, x, y, layer=0), y)
    assert_near(bench.run(rows, O, x, y, layer=1), bench.expected(rows, O, x, y, layer=1), y)


def test_a_batch_of_base_rows_has_no_work(dtype: torch.dtype) -> None:
    bench = Bench([make_adapter({O: (8,)}, dtype, seed=5)])
    x, y = inputs(2, O, dtype)

    assert torch.equal(bench.run([], O, x, y), y)
    assert bench.kernels.bridge.isnan().all()


def test_linears_in_flight_do_not_share_a_bridge(dtype: torch.dtype) -> None:
    bench = Bench([make_adapter({O: (8,), DOWN: (3,)}, dtype, seed=6)], flights=2)
    rows, kernels = [(0, 0, 2)], bench.kernels
    (x, y), (wide, out) = inputs(2, O, dtype), inputs(2, DOWN, dtype)
    first, second = y.clone(), out.clone()

    kernels.plan(bench.segments(rows), 2)
    kernels.shrink(1, O, x, flight=0)
    kernels.shrink(1, DOWN, wide, flight=1)
    kernels.expand_(1, O, first, flight=0)
    kernels.expand_(1, DOWN, second, flight=1)

    assert_near(first, bench.expected(rows, O, x, y), y)
    assert_near(second, bench.expected(rows, DOWN, wide, out), out)


def test_the_largest_rank_on_every_slice_fits_the_bridge() -> None:
    rank = LIMITS.max_rank
    bench = Bench([make_adapter({QKV: (rank, rank, rank)}, torch.float16, seed=7)])
    x, y = inputs(1, QKV, torch.float16)
    rows = [(0, 0, 1)]

    assert_near(bench.run(rows, QKV, x, y), bench.expected(rows, QKV, x, y), y)
