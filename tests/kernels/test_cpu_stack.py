"""A stack of layers in one call against its kernels called one by one, at every instruction set of this processor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from readapt_kernels.cpu.arena import Arena
from readapt_kernels.cpu.launcher import BadLayout, CpuKernels, KvLayout
from readapt_kernels.cpu.library import BLOCK_TOKENS, FACTORS, SEGMENT, SLICES
from readapt_kernels.cpu.panels import pack
from readapt_kernels.cpu.stack import ITEMS, LINEARS, Product, Rows, Stack, StackLayer

BF16, NAN, EPS = torch.bfloat16, float("nan"), 1e-5
LAYERS, HIDDEN, INNER, HEADS, KV_HEADS, DIM, PAGES = 3, 72, 130, 6, 2, 32, 40
SIZES = {"qkv": (192, 64, 64), "o": (HIDDEN,), "gate_up": (INNER, INNER), "down": (HIDDEN,)}
INPUTS = {"qkv": HIDDEN, "o": HEADS * DIM, "gate_up": HIDDEN, "down": INNER}
CONTEXTS = (1, 16, 17, 150, 31, 5, 6, 2, 40)
RANKS = (0, 3, 0, 16)
"""Of adapters of two rows each, base rows behind them; 0: none on that slice, different ones by linear and layer."""


def random(*shape: int, seed: int) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) / 8).to(BF16)


@dataclass(frozen=True)
class Case:
    """Weights, pages and adapters of one step; ``pool`` is ``[layers, pages, elements]``, NaN where nothing is."""

    kv: KvLayout
    pool: Tensor
    layers: list[StackLayer]
    norm: Tensor
    rows: Rows
    factors: np.ndarray
    segments: np.ndarray
    held: list[Tensor]


def case(rows: int) -> Case:
    contexts = torch.tensor(CONTEXTS[:rows])
    kv = KvLayout(HEADS, KV_HEADS, DIM, 2 * KV_HEADS * DIM * BLOCK_TOKENS)
    pool = torch.full((LAYERS, PAGES, kv.page_stride), NAN, dtype=BF16)
    free = torch.randperm(PAGES, generator=torch.Generator().manual_seed(1)).int()
    tables = torch.zeros(rows, 10, dtype=torch.int32)
    for row, context in enumerate(contexts.tolist()):
        count = -(-context // BLOCK_TOKENS)
        tables[row, :count], free = free[:count], free[count:]
    _remember(kv, pool, tables, contexts)
    own = tables.gather(1, ((contexts - 1) // BLOCK_TOKENS)[:, None]).flatten().long()
    factors, held = _factors()
    segments = np.array(
        [(factors[i].ctypes.data, 2 * i, 2 * i + 2) for i in range(min(len(RANKS), rows // 2))], SEGMENT
    )
    return Case(
        *(kv, pool, [_layer(index, pool) for index in range(LAYERS)], random(HIDDEN, seed=99)),
        *(Rows(torch.arange(rows), contexts - 1, own, contexts, tables), factors, segments, held),
    )


def _remember(kv: KvLayout, pool: Tensor, tables: Tensor, contexts: Tensor) -> None:
    """Keys and values of the tokens before."""
    kernels = CpuKernels(BF16)
    for layer in range(LAYERS):
        for row, context in enumerate(contexts.tolist()):
            if context > 1:
                qkv, where = random(context - 1, kv.qkv_width, seed=layer * 100 + row), torch.arange(context - 1)
                pages = tables[row][where // BLOCK_TOKENS].long()
                kernels.rotate_write(qkv, None, where, pages, pool[layer].data_ptr(), kv)


def _layer(index: int, pool: Tensor) -> StackLayer:
    """The second without rotation, the third without norms of heads; the first with biases."""
    arena, seed = Arena(), 1000 * (index + 1)
    products = {}
    for number, name in enumerate(LINEARS):
        outputs = sum(SIZES[name])
        weight, bias = random(outputs, INPUTS[name], seed=seed + number), random(outputs, seed=seed + 10 + number)
        products[name] = Product(pack(weight, arena), None if index else bias, len(SIZES[name]))
    angles = torch.outer(torch.arange(256.0), 1e-2 * torch.arange(1, DIM // 2 + 1))
    cos, sin = (torch.cat((f(angles), f(angles)), -1).to(BF16) for f in (torch.cos, torch.sin))
    return StackLayer(
        input_norm=1 + random(HIDDEN, seed=seed + 20),
        post_attention_norm=1 + random(HIDDEN, seed=seed + 21),
        qk_norm=None if index == 2 else (1 + random(DIM, seed=seed + 22), 1 + random(DIM, seed=seed + 23)),
        rotary=None if index == 1 else (cos, sin),
        pages=pool[index].data_ptr(),
        products=products,
    )


def _factors() -> tuple[np.ndarray, list[Tensor]]:
    table = np.zeros((len(RANKS), LAYERS, len(LINEARS), SLICES), dtype=FACTORS)
    held: list[Tensor] = []
    for place in np.ndindex(len(RANKS), LAYERS, len(LINEARS)):
        start = rank_start = 0
        for part, size in enumerate(SIZES[LINEARS[place[2]]]):
            if rank := RANKS[(sum(place) + part) % len(RANKS)]:
                a = random(rank, INPUTS[LINEARS[place[2]]], seed=len(held))
                b = random(rank, size, seed=len(held) + 1)
                held += [a, b]
                table[(*place, part)] = (a.data_ptr(), b.data_ptr(), rank, rank_start, start, size, 0.5)
                rank_start += rank
            start += size
    return table, held


def one_by_one(kernels: CpuKernels, case: Case, hidden: Tensor) -> Tensor:
    rows, delta = case.rows, None
    bridge = torch.full((len(hidden), SLICES * max(RANKS)), NAN)

    def linear(index: int, name: str, x: Tensor) -> Tensor:
        product = case.layers[index].products[name]
        y = kernels.linear(x, product.weight, product.bias)
        offset = (index * len(LINEARS) + LINEARS.index(name)) * SLICES
        if len(case.segments):
            kernels.lora(case.segments, product.slices, offset, x, y, bridge)
        return y

    for index, layer in enumerate(case.layers):
        qkv = linear(index, "qkv", kernels.add_norm(hidden, delta, layer.input_norm, EPS))
        kernels.rotate_write(
            *(qkv, layer.rotary, rows.positions, rows.pages, layer.pages, case.kv), norm=layer.qk_norm, eps=EPS
        )
        mixed = torch.full((len(hidden), HEADS * DIM), NAN, dtype=BF16)
        kernels.attend(qkv, mixed, rows.tokens, rows.tables, rows.contexts, layer.pages, case.kv)
        x = kernels.add_norm(hidden, linear(index, "o", mixed), layer.post_attention_norm, EPS)
        delta = linear(index, "down", kernels.silu_mul(linear(index, "gate_up", x)))
    return kernels.add_norm(hidden, delta, case.norm, EPS)


@pytest.mark.parametrize("rows", [1, 2, 7, 9], ids="{} rows".format)
def test_a_stack_gives_the_bits_of_its_kernels(level: str, rows: int) -> None:
    """Rows 7 and 9 take several tiles of a product, which then asks for factors and pages: nothing may change by it."""
    step, hidden = case(rows), random(rows, HIDDEN, seed=5)
    before = step.pool.clone()
    expected = one_by_one(CpuKernels(BF16, level), step, hidden.clone())
    written = step.pool.clone()
    step.pool.copy_(before)
    stack = Stack(step.layers, step.norm, step.kv, EPS, level)
    found = stack.run(hidden, step.rows, step.segments, torch.full((rows, SLICES * max(RANKS)), NAN))
    assert expected.isfinite().all()
    assert torch.equal(found, expected)
    assert torch.equal(step.pool.view(torch.int16), written.view(torch.int16))


def test_a_stack_does_not_depend_on_threads(level: str) -> None:
    step, before = case(9), torch.get_num_threads()
    stack, found = Stack(step.layers, step.norm, step.kv, EPS, level), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            bridge = torch.full((9, SLICES * max(RANKS)), NAN)
            found.append(stack.run(random(9, HIDDEN, seed=5), step.rows, step.segments, bridge).clone())
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_a_stack_tells_where_its_time_goes_when_asked() -> None:
    step = case(9)
    stack = Stack(step.layers, step.norm, step.kv, EPS)
    bridge = torch.empty(9, SLICES * max(RANKS))
    stack.spent = np.zeros(len(ITEMS))
    stack.run(random(9, HIDDEN, seed=5), step.rows, step.segments, bridge)
    assert (stack.spent > 0).all()


def test_what_a_stack_cannot_read_is_refused() -> None:
    step = case(2)
    stack = Stack(step.layers, step.norm, step.kv, EPS)
    with pytest.raises(BadLayout, match="float32"):
        stack.run(torch.zeros(2, HIDDEN), step.rows, step.segments, torch.empty(2, 1))
    with pytest.raises(BadLayout, match="float32"):
        Stack(step.layers, step.norm.float(), step.kv, EPS)
