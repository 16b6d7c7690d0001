"""A row's result is the same bit for bit whatever runs beside it, where its pages lie and who arrives last."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from triton.runtime.interpreter import interpreter_builder

from readapt_kernels.lora.launcher import LoraKernels
from readapt_kernels.lora.records import place
from readapt_kernels.lora.shapes import Limits, LinearShape, LoraShapes
from readapt_kernels.lora.tiles import TileTable
from readapt_kernels.lora.work import Segments
from readapt_testing.paged_lora import QKV, Bench, O, inputs, make_adapter

SPLIT = TileTable(split_width=192)
PAGE_STRIDE = 2**29
"""Elements from page to page; five pages reach past 2³¹."""


def test_companions_and_position_in_the_batch_change_nothing(dtype: torch.dtype) -> None:
    adapters = [make_adapter({O: (rank,)}, dtype, seed=rank) for rank in (20, 8, 33)]
    bench = Bench(adapters, tiles=SPLIT)
    x, y = inputs(24, O, dtype)
    alone = bench.run([(0, 0, 3)], O, x[:3], y[:3])
    moved = [torch.cat([rows[7:], rows[:3], rows[3:7]]) for rows in (x, y)]

    among = bench.run([(1, 1, 17), (0, 17, 20), (2, 21, 24)], O, *moved)

    assert torch.equal(among[17:20], alone)


def test_the_place_of_pages_changes_nothing(dtype: torch.dtype) -> None:
    adapter = make_adapter({QKV: (9, 3, 5), O: (17,)}, dtype, seed=1)
    x, y = inputs(3, O, dtype)
    results = [Bench([adapter], seed=seed).run([(0, 0, 3)], O, x, y) for seed in range(3)]

    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("programs", [1, 2, 7, 40])
def test_the_size_of_the_grid_changes_nothing(programs: int) -> None:
    adapter = make_adapter({O: (20,)}, torch.float32, seed=2)
    x, y = inputs(3, O, torch.float32)
    expected = Bench([adapter], tiles=SPLIT).run([(0, 0, 3)], O, x, y)

    assert torch.equal(Bench([adapter], tiles=SPLIT, programs=programs).run([(0, 0, 3)], O, x, y), expected)


def test_the_order_in_which_splits_arrive_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    programs = 6  # two tiles of columns, three splits: a program each
    adapter = make_adapter({O: (20,)}, torch.float32, seed=3)
    x, y = inputs(3, O, torch.float32)
    bench = Bench([adapter], tiles=SPLIT, programs=programs)
    expected = bench.run([(0, 0, 3)], O, x, y)
    in_order = interpreter_builder.set_grid_idx

    for order in ([5, 4, 3, 2, 1, 0], [1, 2, 0, 5, 3, 4]):
        monkeypatch.setattr(interpreter_builder, "set_grid_idx", lambda i, j, k, o=order: in_order(o[i], j, k))
        bench.kernels.planes.fill_(torch.nan)
        assert torch.equal(bench.run([(0, 0, 3)], O, x, y), expected)


def test_what_a_larger_batch_left_behind_changes_nothing(dtype: torch.dtype) -> None:
    adapters = [make_adapter({O: (rank,), QKV: (rank, 0, 1)}, dtype, seed=rank) for rank in (33, 8, 20)]
    x, y = inputs(64, O, dtype)
    fresh, used = Bench(adapters), Bench(adapters)
    for count in (64, 40):  # both of the buffers that take turns
        used.kernels.plan(used.segments([(0, 0, 17), (2, 17, 18), (1, 19, count)]), 64)

    rows = [(1, 2, 4)]
    expected = fresh.run(rows, O, x[:5], y[:5])

    assert torch.equal(used.run(rows, O, x[:5], y[:5]), expected)


def test_a_recorded_launch_serves_another_mix_of_adapters(dtype: torch.dtype) -> None:
    """Like a graph replay: the arguments of the launch stay, only the contents of static buffers change."""
    adapters = [make_adapter({O: (rank,)}, dtype, seed=rank) for rank in (3, 40, 8)]
    bench = Bench(adapters)
    x, y = inputs(6, O, dtype)
    bench.kernels.plan(bench.segments([(0, 0, 6)]), 6)
    pointer = bench.kernels.work.data_ptr()

    rows = [(2, 0, 1), (1, 2, 4), (0, 4, 6)]
    actual = bench.run(rows, O, x, y)

    assert bench.kernels.work.data_ptr() == pointer
    assert torch.equal(actual, Bench(adapters, seed=1).run(rows, O, x, y))


def test_values_in_rows_of_others_do_not_leak(dtype: torch.dtype) -> None:
    bench = Bench([make_adapter({O: (8,)}, dtype, seed=4)])
    x, y = inputs(8, O, dtype)
    expected = bench.run([(0, 3, 5)], O, x, y)[3:5]
    x[:3], x[5:], y[:3], y[5:] = (torch.nan,) * 4

    assert torch.equal(bench.run([(0, 3, 5)], O, x, y)[3:5], expected)


def test_pages_beyond_two_to_the_31_elements_are_addressed(tmp_path: Path) -> None:
    shapes = LoraShapes((LinearShape(64, (64,)),), num_layers=1, page_elements=256)
    adapter = make_adapter({0: (16,)}, torch.float16, seed=5, shapes=shapes, layers=1)
    pages = (4, 2, 0, 3, 1, 5, 6, 7)  # 2,048 elements
    size = PAGE_STRIDE * max(pages) + shapes.page_elements
    # A sparse file: only the pages that are written take space.
    storage = torch.UntypedStorage.from_file(str(tmp_path / "pool"), True, size * 2)
    flat = torch.empty(0, dtype=torch.float16).set_(storage, 0, (size,))
    pool = flat.as_strided((max(pages) + 1, 1, shapes.page_elements), (PAGE_STRIDE, 256, 1))
    for at, page in enumerate(pages):
        pool[page, 0] = adapter.flat[0, at * 256 : (at + 1) * 256]
    limits = Limits(1, 8, 16, 16)
    kernels = LoraKernels(pool, shapes, limits)
    x, y = inputs(2, 0, torch.float16, shapes)
    out = y.clone()

    kernels.plan(Segments.of([(place(adapter.record, pages, shapes, limits), 0, 2)]), 2)
    kernels.shrink(0, 0, x)
    kernels.expand_(0, 0, out)

    plain = Bench([adapter], shapes=shapes, limits=limits)
    assert torch.equal(out, plain.run([(0, 0, 2)], 0, x, y, layer=0))
