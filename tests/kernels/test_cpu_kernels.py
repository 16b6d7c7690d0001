"""The C++ kernels against dense float64, at every instruction set that this processor has."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from readapt_kernels.cpu.launcher import BadLayout, CpuKernels, KvLayout
from readapt_kernels.cpu.library import BLOCK_TOKENS, FACTORS, SEGMENT

DTYPES = (torch.float32, torch.bfloat16)
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3}
NAN = float("nan")


@pytest.fixture(params=DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    found: torch.dtype = request.param
    return found


@pytest.fixture
def kernels(level: str, dtype: torch.dtype) -> CpuKernels:
    return CpuKernels(dtype, level)


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def error(found: Tensor, expected: Tensor) -> float:
    assert found.isfinite().all()
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("width", [16, 576, 577, 33])
@pytest.mark.parametrize("added", [True, False], ids=["with delta", "alone"])
def test_add_norm(kernels: CpuKernels, dtype: torch.dtype, width: int, added: bool) -> None:
    hidden, delta = random(5, width, dtype=dtype), random(5, width, dtype=dtype, seed=1)
    weight = random(width, dtype=dtype, seed=2)
    summed = hidden + delta if added else hidden.clone()
    found = kernels.add_norm(hidden, delta if added else None, weight, 1e-5)
    wide = summed.double()
    expected = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5) * weight.double()
    assert torch.equal(hidden, summed)
    assert error(found, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("inner", [16, 1536, 35])
def test_silu_mul(kernels: CpuKernels, dtype: torch.dtype, inner: int) -> None:
    gate_up = 8 * random(4, 2 * inner, dtype=dtype)
    gate_up[0, 0], gate_up[1, 0] = -200.0, 200.0
    gate, up = gate_up.double().chunk(2, dim=-1)
    assert error(kernels.silu_mul(gate_up), gate * torch.sigmoid(gate) * up) < TOLERANCE[dtype]


@pytest.mark.parametrize("vocab", [1, 15, 1024, 1025, 49152])
def test_greedy_takes_the_first_largest(kernels: CpuKernels, dtype: torch.dtype, vocab: int) -> None:
    logits = random(6, vocab, dtype=dtype).round()  # many ties
    best, finite = kernels.greedy(logits)
    expected = [row.index(max(row)) for row in logits.tolist()]
    assert best.tolist() == expected
    assert finite.all()


def test_greedy_tells_which_rows_are_not_finite(kernels: CpuKernels, dtype: torch.dtype) -> None:
    logits = random(5, 50, dtype=dtype)
    logits[1, 49], logits[2, 3], logits[3, 0] = NAN, math.inf, -math.inf
    assert kernels.greedy(logits)[1].tolist() == [True, False, False, False, True]


@pytest.mark.parametrize("vocab", [1, 15, 1025, 49152])
@pytest.mark.parametrize("top_p", [1.0, 0.99999, 0.9, 0.3, 0.0])
def test_draw_takes_the_token_at_its_point_of_the_kept_mass(
    kernels: CpuKernels, dtype: torch.dtype, vocab: int, top_p: float
) -> None:
    logits = 3 * random(3, vocab, dtype=dtype)
    count = 60
    rows, points = torch.arange(count) % 3, torch.rand(count, generator=torch.Generator().manual_seed(5))
    points[0], points[1] = 0.0, 1 - 2.0**-24
    best = logits.float().argmax(dim=-1)
    drawn = kernels.draw(logits, best, rows, torch.full((count,), 0.8), torch.full((count,), top_p), points)

    weights = (logits.double() / 0.8).softmax(dim=-1)
    ordered, order = weights.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    kept = torch.zeros_like(weights).scatter(1, order, ordered * (before < top_p)).index_select(0, rows)
    if top_p == 0.0:
        assert torch.equal(drawn, best[rows])
        return
    mass = kept.cumsum(dim=-1)
    upto = mass.gather(1, drawn[:, None]).squeeze(1)
    target, own = points.double() * mass[:, -1], kept.gather(1, drawn[:, None]).squeeze(1)
    slack = 2e-6  # float32 weights, and one token that the cut may keep or not
    assert bool((upto - own <= target + slack).all())
    assert bool((target <= upto + slack).all())
    assert bool((own > 0).all())


def test_draw_of_a_row_that_is_not_finite_is_some_token_and_changes_no_other(
    kernels: CpuKernels, dtype: torch.dtype
) -> None:
    logits = random(4, 300, dtype=dtype)
    rows, ones = torch.arange(4), torch.ones(4)

    def draw() -> Tensor:
        return kernels.draw(logits, kernels.greedy(logits)[0], rows, ones, ones * 0.9, ones / 3)

    before = draw()
    logits[1, 5], logits[2] = NAN, math.inf
    after = draw()
    assert after[[0, 3]].equal(before[[0, 3]])
    assert bool(((after >= 0) & (after < 300)).all())


SHAPES = [(9, 3, 64), (8, 8, 16), (7, 1, 32), (16, 2, 128), (4, 2, 80), (2, 1, 96), (3, 1, 256)]
CONTEXTS = [1, 15, 16, 17, 200]


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), SHAPES, ids=str)
def test_tokens_written_one_by_one_are_attended(
    kernels: CpuKernels, dtype: torch.dtype, heads: int, kv_heads: int, dim: int
) -> None:
    """Ragged contexts over permuted pages; every slot that was not written holds NaN."""
    pages = sum(-(-context // BLOCK_TOKENS) for context in CONTEXTS)
    pool = torch.full((pages + 3, 2 * kv_heads * dim * BLOCK_TOKENS), NAN, dtype=dtype)
    kv = KvLayout(heads, kv_heads, dim, pool.stride(0))
    order = torch.randperm(pages + 3, generator=torch.Generator().manual_seed(3)).tolist()
    angles = torch.outer(torch.arange(256.0), 1e-2 * torch.arange(1, dim // 2 + 1))
    rotary = tuple(torch.cat((f(angles), f(angles)), -1).to(dtype) for f in (torch.cos, torch.sin))
    tables = torch.zeros(len(CONTEXTS), 13, dtype=torch.int32)
    last, expected = [], []
    for row, context in enumerate(CONTEXTS):
        own = [order.pop() for _ in range(-(-context // BLOCK_TOKENS))]
        tables[row, : len(own)] = torch.tensor(own)
        qkv = random(context, kv.qkv_width, dtype=dtype, seed=row)
        expected.append(_attended(qkv, rotary, kv))
        where = torch.arange(context)
        kernels.rotate_write(qkv, rotary, where, torch.tensor(own)[where // BLOCK_TOKENS], pool.data_ptr(), kv)
        last.append(qkv[-1:])
    qkv = torch.cat([torch.full_like(last[0], NAN), *last])  # row 0 is not asked for
    out = torch.full((len(qkv), heads * dim), NAN, dtype=dtype)
    tokens, contexts = torch.arange(1, len(qkv)), torch.tensor(CONTEXTS)
    kernels.attend(qkv, out, tokens, tables, contexts, pool.data_ptr(), kv)
    assert out[0].isnan().all()
    assert error(out[1:], torch.stack(expected)) < 2 * TOLERANCE[dtype]


def _attended(qkv: Tensor, rotary: tuple[Tensor, ...], kv: KvLayout) -> Tensor:
    """What the last token sees, densely in float64 from the rotated and rounded queries and keys."""
    heads = qkv.view(len(qkv), -1, kv.dim).double()
    q, k, v = heads.split([kv.heads, kv.kv_heads, kv.kv_heads], dim=1)
    cos, sin = (table[: len(qkv), None].double() for table in rotary)

    def rotated(x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return (x * cos + torch.cat((-second, first), -1) * sin).to(qkv.dtype).double()

    group = kv.heads // kv.kv_heads
    keys, values = rotated(k).repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("hd,thd->ht", rotated(q)[-1], keys) * kv.dim**-0.5
    return torch.einsum("ht,thd->hd", scores.softmax(-1), values).flatten()


RANKS = [1, 3, 8, 16, 64, 96, 128]


@pytest.mark.parametrize(("width", "sizes"), [(576, (576, 192, 192)), (40, (24, 130)), (1536, (576,))], ids=str)
@pytest.mark.parametrize("rows", [1, 2, 5], ids="{} rows each".format)
def test_lora_of_mixed_ranks(
    kernels: CpuKernels, dtype: torch.dtype, width: int, sizes: tuple[int, ...], rows: int
) -> None:
    """Base rows first, one adapter per rank behind them, every third slice missing; the bridge is rounded."""
    x = random(2 + rows * len(RANKS), width, dtype=dtype)
    y = random(len(x), sum(sizes), dtype=dtype, seed=1)
    expected, kept = y.double(), []
    factors = np.zeros((len(RANKS), 2, 3), dtype=FACTORS)
    segments = np.zeros(len(RANKS), dtype=SEGMENT)
    for index, rank in enumerate(RANKS):
        start = 2 + index * rows
        segments[index] = (factors[index].ctypes.data, start, start + rows)
        out_start = rank_start = 0
        for part, size in enumerate(sizes):
            if (index + part) % 3:
                a, b = (0.1 * random(rank, n, dtype=dtype, seed=7 * index + part) for n in (width, size))
                kept += [a, b]
                factors[index, 1, part] = (a.data_ptr(), b.data_ptr(), rank, rank_start, out_start, size, 0.5)
                bridge = (x[start : start + rows].double() @ a.double().t()).to(dtype).double()
                expected[start : start + rows, out_start : out_start + size] += 0.5 * bridge @ b.double()
                rank_start += rank
            out_start += size
    base = y[:2].clone()
    workspace = torch.full((len(x), 3 * max(RANKS)), NAN)
    kernels.lora(segments, len(sizes), 3, x, y, workspace)
    assert torch.equal(y[:2], base)
    assert error(y, expected) < TOLERANCE[dtype]


def test_a_row_does_not_depend_on_its_companions(kernels: CpuKernels, dtype: torch.dtype) -> None:
    x = random(7, 576, dtype=dtype)
    a, b = random(16, 576, dtype=dtype, seed=1), random(16, 192, dtype=dtype, seed=2)
    factors = np.array([(a.data_ptr(), b.data_ptr(), 16, 0, 0, 192, 2.0)], dtype=FACTORS)
    workspace = torch.empty(7, 16)

    def run(rows: Tensor) -> Tensor:
        y = torch.zeros(len(rows), 192, dtype=dtype)
        segments = np.array([(factors.ctypes.data, 0, len(rows))], dtype=SEGMENT)
        kernels.lora(segments, 1, 0, rows, y, workspace)
        return y

    together = run(x)
    assert all(torch.equal(run(x[i : i + 1].contiguous())[0], together[i]) for i in range(len(x)))


def test_what_the_kernels_cannot_read_is_refused() -> None:
    kernels = CpuKernels(torch.float32)
    with pytest.raises(BadLayout, match="contiguous"):
        kernels.silu_mul(torch.zeros(8, 4).t())
    with pytest.raises(BadLayout, match="float16"):
        CpuKernels(torch.float16)
    with pytest.raises(BadLayout, match="48 elements"):
        KvLayout(4, 2, 48, 0)


def test_loading_leaves_the_processor_s_arithmetic_as_it_is() -> None:
    """A library linked with -ffast-math would turn denormal numbers into zeros in the whole process."""
    script = "from readapt_kernels.cpu.library import load; print(load() is not None, float('5e-324') * float('1') > 0)"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["True", "True"]
