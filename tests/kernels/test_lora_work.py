"""What the launcher refuses, and what a work list says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from random import Random
from typing import Any

import pytest
import torch

from readapt_kernels.errors import KernelError, UnsupportedLayout, WorkTooLarge
from readapt_kernels.lora import launcher
from readapt_kernels.lora.launcher import LoraKernels
from readapt_kernels.lora.records import AdapterRecord, LinearRows, SliceRows, describe, directory_words, place
from readapt_kernels.lora.shapes import LinearShape, LoraShapes
from readapt_kernels.lora.tiles import TileTable
from readapt_kernels.lora.work import Segments, Step, WorkLayout, WorkList
from readapt_runtime.model.adapter_image import LinearFactors, pack_adapter
from readapt_runtime.model.config import DecoderConfig, FusedLinear, Rotary
from readapt_testing.paged_lora import LIMITS, QKV, SMOL, Adapter, Bench, O, inputs, make_adapter

FP32 = torch.float32


@pytest.fixture(scope="module")
def adapter() -> Adapter:
    return make_adapter({QKV: (8, 3, 0), O: (20,)}, FP32, seed=1)


@pytest.mark.parametrize(
    ("widths", "page", "chunk"),
    [
        ((576, 192, 1536), 6144, 64),
        ((4096, 1024, 14336), 32768, 256),
        ((896, 128, 4864), 4096, 128),
        ((3584, 512, 18944), 16384, 256),
        ((1216, 2368), 6144, 64),
        ((48, 64), 512, 16),
    ],
)
def test_a_chunk_divides_every_row_and_the_page(widths: tuple[int, ...], page: int, chunk: int) -> None:
    linears = tuple(LinearShape(width, (width,)) for width in widths)

    assert LoraShapes(linears, 1, page).chunk == chunk


def test_rows_that_no_tile_divides_are_refused() -> None:
    with pytest.raises(UnsupportedLayout, match="pad the rows"):
        LoraShapes((LinearShape(1000, (576,)),), 1, 6144)


@pytest.mark.parametrize("tokens", [1, 7, 256, 257, 4096])
@pytest.mark.parametrize("width", [576, 1536, 4096, 14336])
def test_splits_depend_on_the_width_alone_and_none_is_empty(tokens: int, width: int) -> None:
    table, shape = TileTable(), LinearShape(width, (576,))
    tile = table.shrink(tokens, 16, shape, 64)
    blocks = width // tile.wide
    per_split = -(-blocks // tile.splits)

    assert (tile.splits - 1) * per_split < blocks
    assert tile.splits == (table.shrink(1, 64, shape, 64).splits if tokens <= 256 else 1)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([(0, 2)] * 9, "adapters in a batch"),
        ([(-1, 2)], "outside"),
        ([(0, 5)], "outside"),
        ([(0, 0)], "empty"),
        ([(0, 2), (1, 3)], "overlap"),
    ],
    ids=["segments", "rows before", "rows outside", "no rows", "overlap"],
)
def test_a_batch_beyond_the_limits_is_refused_and_the_last_plan_stays(
    adapter: Adapter, rows: list[tuple[int, int]], says: str
) -> None:
    bench = Bench([adapter])
    bench.kernels.plan(bench.segments([(0, 0, 2)]), 4)
    before = bench.kernels.work.clone()

    with pytest.raises(KernelError, match=says):
        bench.kernels.plan(bench.segments([(0, *row) for row in rows]), 4)

    assert torch.equal(bench.kernels.work, before)


def test_pages_that_do_not_hold_the_factors_are_refused(adapter: Adapter) -> None:
    with pytest.raises(UnsupportedLayout, match="too few"):
        place(adapter.record, [0, 1, 2], SMOL, LIMITS)


def test_an_adapter_beyond_the_limits_is_refused(adapter: Adapter) -> None:
    with pytest.raises(WorkTooLarge, match="129 pages"):
        place(adapter.record, range(129), SMOL, LIMITS)
    with pytest.raises(WorkTooLarge, match="rank 20"):
        place(adapter.record, range(128), SMOL, replace(LIMITS, max_rank=19))


def test_too_many_tokens_are_refused(adapter: Adapter) -> None:
    with pytest.raises(WorkTooLarge, match="97 tokens"):
        Bench([adapter]).kernels.plan(Segments.of([]), 97)


@pytest.mark.parametrize("tiles", [TileTable(), TileTable(small_tokens=0)], ids=["small tiles", "large tiles"])
def test_the_fullest_batch_fits_the_buffers(tiles: TileTable) -> None:
    rank = LIMITS.max_rank
    ranks = {i: (rank,) * len(shape.out_sizes) for i, shape in enumerate(SMOL.linears)}
    record = make_adapter(ranks, torch.float16, seed=1).record
    pages = tuple(range(-(-record.num_chunks // SMOL.chunks_per_page)))
    limits = replace(LIMITS, max_pages=len(pages))
    stops = [1, 2, 3, 20, 37, 54, 71, limits.max_tokens]
    placed = place(record, pages, SMOL, limits)
    segments = Segments.of((placed, a, b) for a, b in pairwise([0, *stops]))
    layout = WorkLayout(SMOL, limits, tiles)
    work = WorkList(layout, torch.zeros(layout.num_words, dtype=torch.int32))

    step = work.fill(segments, limits.max_tokens)

    counts = work.host[: layout.shrink_items : 4].tolist()
    assert step.used <= layout.num_words
    assert max(counts[:-1]) <= layout.max_shrink_items
    assert counts[-1] <= layout.max_expand_items
    assert all(
        n <= layout.max_small_items for n, tile in zip(counts, step.tiles.shrink, strict=False) if tile.splits > 1
    )


@pytest.mark.parametrize("num_tokens", [60, 96], ids=["small tiles", "large tiles"])
@pytest.mark.parametrize("seed", range(4))
def test_a_list_says_what_loops_over_its_layout_say(num_tokens: int, seed: int) -> None:
    """Adapters of several directories, without some modules, of one row and of many; over what another batch left."""
    rng = Random(seed)
    stays: list[Stay] = []
    for r in range(1, 9):
        ranks = {QKV: (r, 0, 90), O: (9 * r,), 3: (5,)} if r % 2 else {O: (r,)}
        made = make_adapter(ranks, FP32, seed=r, layers=r % 3 + 1)
        stays.append(Stay(made.record, rng.sample(range(999), rng.randint(60, 128))))
    layout = WorkLayout(SMOL, LIMITS, TileTable(small_tokens=64))
    work = WorkList(layout, torch.full((layout.num_words,), 2**30, dtype=torch.int32))
    for count in (8, 5, 0, 1):
        mine = rng.sample(stays, count)
        edges = sorted(rng.sample(range(num_tokens + 1), 2 * count))
        rows = list(zip(edges[::2], edges[1::2], strict=True))

        step = work.fill(Segments.of((s.placed, *row) for s, row in zip(mine, rows, strict=True)), num_tokens)

        assert _read(work.host.tolist(), step, layout, count) == _looped(mine, rows, step, layout)


@dataclass
class Stay:
    record: AdapterRecord
    pages: list[int]

    def __post_init__(self) -> None:
        self.placed = place(self.record, self.pages, SMOL, LIMITS)


def _read(words: list[int], step: Step, layout: WorkLayout, slots: int) -> dict[str, Any]:
    """What kernels find, by the addresses that they compute."""
    linears, pages, layers = len(SMOL.linears), LIMITS.max_pages, SMOL.num_layers
    firsts = [layout.shrink_items + i * layout.shrink_stride for i in range(linears)] + [layout.expand_items]
    items = [
        [tuple(words[at : at + 4]) for at in range(first, first + 4 * words[4 * i], 4)]
        for i, first in enumerate(firsts)
    ]
    used = [words[layout.layers + slot * layers :][:layers] for slot in range(slots)]
    directories, size = words[layout.directories : step.used], directory_words(SMOL)
    return {
        "items": items,
        "tables": [words[layout.tables + slot * pages :][:pages] for slot in range(slots)],
        "directories": [[directories[at : at + size] for at in own] for own in used],
    }


def _looped(stays: list[Stay], rows: list[tuple[int, int]], step: Step, layout: WorkLayout) -> dict[str, Any]:
    height = layout.tiles.height(step.tiles.num_tokens)
    cut = [(s, at, min(height, stop - at)) for s, (a, stop) in enumerate(rows) for at in range(a, stop, height)]
    columns = [stay.record.columns.tolist() for stay in stays]
    items = [
        [(s, c, at, n) for s, at, n in cut for c in range(0, columns[s][i], tile.columns)]
        for i, tile in enumerate(step.tiles.shrink)
    ]
    words, size = [stay.record.directories.tolist() for stay in stays], directory_words(SMOL)
    return {
        "items": [*items, [(s, 0, at, n) for s, at, n in cut]],
        "tables": [stay.pages + [0] * (LIMITS.max_pages - len(stay.pages)) for stay in stays],
        "directories": [
            [own[at : at + size] for at in stay.record.layers.tolist()] for own, stay in zip(words, stays, strict=True)
        ],
    }


ROWS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "dtype": (lambda x: x.half(), "the pool torch.float32"),
    "width": (lambda x: x[:, :64], "planned was"),
    "rows": (lambda x: x[:1], "planned was"),
    "transposed": (lambda x: x.t().contiguous().t(), "strides"),
    "unaligned rows": (lambda x: torch.zeros(4, 577)[:, :576], "strides"),
    "unaligned start": (lambda x: torch.zeros(4, 592)[:, 1:577], "strides"),
}


@pytest.mark.parametrize(("change", "says"), ROWS.values(), ids=ROWS.keys())
def test_rows_that_the_kernels_do_not_read_are_refused(
    adapter: Adapter, change: Callable[[torch.Tensor], torch.Tensor], says: str
) -> None:
    bench = Bench([adapter])
    bench.kernels.plan(bench.segments([(0, 0, 2)]), 4)
    x, y = inputs(4, O, FP32)

    with pytest.raises(UnsupportedLayout, match=says):
        bench.kernels.shrink(0, O, change(x))
    with pytest.raises(UnsupportedLayout, match=says):
        bench.kernels.expand_(0, O, change(y))


POOLS: dict[str, tuple[torch.Tensor, str]] = {
    "dtype": (torch.zeros(2, 2, 6144, dtype=torch.float64), "float64"),
    "shape": (torch.zeros(2, 2, 6144 + 64), "wanted"),
    "strides": (torch.zeros(2, 6144, 2).transpose(1, 2), "strides"),
    "device": (torch.zeros(2, 2, 6144, device="meta"), "no kernels on meta"),
}


@pytest.mark.parametrize(("pool", "says"), POOLS.values(), ids=POOLS.keys())
def test_pools_that_the_kernels_do_not_read_are_refused(pool: torch.Tensor, says: str) -> None:
    with pytest.raises(UnsupportedLayout, match=says):
        LoraKernels(pool, SMOL, LIMITS)


def test_without_gpu_and_interpreter_there_are_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher.triton.knobs.runtime, "interpret", False)

    assert not launcher.is_available(torch.device("cpu"))
    assert launcher.is_available(torch.device("cuda"))


def test_a_layer_or_plan_that_is_not_there_is_refused(adapter: Adapter) -> None:
    bench = Bench([adapter])
    x, _ = inputs(4, O, FP32)
    with pytest.raises(UnsupportedLayout, match="nothing is planned"):
        bench.kernels.shrink(0, O, x)
    bench.kernels.plan(Segments.of([]), 4)
    with pytest.raises(UnsupportedLayout, match="layer 2 of 2"):
        bench.kernels.shrink(2, O, x)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([[None]], "layers"),
        ([[None], [None]], "fused linears"),
        ([[None] * 4, [LinearRows(0, (None,)), None, None, None]], "slices"),
        ([[None] * 4, [None, LinearRows(0, (SliceRows(0, 1, 32, 1.0),)), None, None]], "multiple of 64"),
    ],
    ids=["layers", "linears", "slices", "offset"],
)
def test_a_directory_that_does_not_fit_the_model_is_refused(rows: list[list[LinearRows | None]], says: str) -> None:
    with pytest.raises(UnsupportedLayout, match=says):
        describe(rows, SMOL)


def test_equal_layers_share_a_directory() -> None:
    uniform = make_adapter({O: (8,)}, FP32, seed=1).record
    partial = make_adapter({O: (8,)}, FP32, seed=1, layers=0b10).record

    assert len(partial.directories) == 2 * len(uniform.directories)
    assert uniform.layers.tolist() == [0, 0]
    assert partial.layers.tolist() == [0, len(uniform.directories)]


def test_the_same_batch_is_uploaded_once(adapter: Adapter) -> None:
    bench = Bench([adapter])
    bench.kernels.plan(bench.segments([(0, 0, 2)]), 4)
    bench.kernels.work.zero_()
    bench.kernels.plan(bench.segments([(0, 0, 2)]), 4)

    assert not bench.kernels.work.any()


@dataclass(frozen=True, slots=True)
class Factors:
    a: torch.Tensor
    b: torch.Tensor
    scale: float


def _rows(factors: LinearFactors | None, fused: FusedLinear) -> LinearRows | None:
    """What a runtime backend does with its directory."""
    if factors is None:
        return None
    found = {
        part.out_start: SliceRows(part.rank_start, part.rank, part.b_offset, part.scale) for part in factors.slices
    }
    return LinearRows(factors.a_offset, tuple(found.get(part.start) for part in fused.slices))


def test_an_image_of_the_runtime_is_read_where_it_lies() -> None:
    config = DecoderConfig(
        "llama",
        576,
        1536,
        2,
        9,
        3,
        64,
        260,
        512,
        1e-5,
        True,
        Rotary((1.0,), 1.0),
        (True,) * 2,
        frozenset(),
        False,
        None,
    )
    generator = torch.Generator().manual_seed(1)

    def module(name: str, rank: int) -> Factors:
        out, width = config.module_shapes[name]
        return Factors(
            torch.randn(rank, width, generator=generator) / 24, torch.randn(out, rank, generator=generator), 0.5
        )

    names = {
        "model.layers.1.self_attn.q_proj": 5,
        "model.layers.1.self_attn.v_proj": 8,
        "model.layers.0.mlp.up_proj": 3,
    }
    modules = {name: module(name, rank) for name, rank in names.items()}
    image = pack_adapter(modules, config, SMOL.page_elements, FP32)
    pages = tuple(range(image.num_pages))
    layers = [[_rows(found.get(name), fused) for name, fused in config.linears.items()] for found in image.layers]
    kernels = LoraKernels(image.read().here.contiguous(), SMOL, LIMITS)
    x, y = inputs(2, QKV, FP32)
    out = y.clone()

    kernels.plan(Segments.of([(place(describe(layers, SMOL), pages, SMOL, LIMITS), 0, 2)]), 2)
    kernels.shrink(1, QKV, x)
    kernels.expand_(1, QKV, out)

    delta = torch.zeros_like(y, dtype=torch.float64)
    for name, columns in (("q_proj", slice(0, 576)), ("v_proj", slice(768, 960))):
        factors = modules[f"model.layers.1.self_attn.{name}"]
        delta[:, columns] = factors.scale * (x.double() @ factors.a.double().t() @ factors.b.double().t())
    torch.testing.assert_close(out.double(), y.double() + delta, rtol=1e-5, atol=1e-5)
