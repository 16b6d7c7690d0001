"""Three engines over the same case: how each lays out the factors, prepares a step and adds LoRA to a linear.

``prepare`` is what each does once a step, before the launches that a graph captures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import cycle
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from lifting import SglangOps, VllmOps
from lora_cases import SCALE, Case

from readapt_kernels.lora.launcher import LoraKernels
from readapt_kernels.lora.records import LinearRows, PlacedAdapter, SliceRows, describe, place
from readapt_kernels.lora.shapes import Limits
from readapt_kernels.lora.work import Segments

Config = Mapping[str, Any]
Tuned = dict[tuple[str, int], Config]
"""Configuration of ``("shrink" or "expand", linear)``; the engine's default where there is none."""
CHUNK_ROWS = 16
"""SGLang's smallest segment, what it takes for decoding."""


class Engine(Protocol):
    """One way to compute LoRA for a case."""

    name: str
    weight_bytes: int
    """Held for all adapters of the case, padding included."""
    outputs: list[list[torch.Tensor]]  # [layers][linears] of [tokens, out], added to in place

    def prepare(self) -> None: ...

    def add(self, layer: int, linear: int) -> None:
        """Every launch of LoRA for one fused linear."""
        ...

    def poison(self) -> None:
        """NaN into scratch memory, the starting values into the outputs."""
        ...


Maker = Callable[[Case, Tuned], Engine]


def run_stack(engine: Engine, linears: Iterable[int]) -> None:
    """LoRA of these linears in every layer, no base products."""
    wanted = tuple(linears)
    for layer in range(len(engine.outputs)):
        for linear in wanted:
            engine.add(layer, linear)


def fresh_outputs(case: Case) -> list[list[torch.Tensor]]:
    linears = range(len(case.shapes.linears))
    return [[case.outputs(linear) for linear in linears] for _ in range(case.shapes.num_layers)]


class Ours:
    """``readapt_kernels.lora``: ranks as they are, in pages of a pool, pages in random order."""

    name = "Readapt"

    def __init__(self, case: Case) -> None:
        self._case, shapes = case, case.shapes
        layouts = [_rank_rows(rank, case) for rank in case.batch.ranks]
        needed = [-(-size // shapes.page_elements) for _, size in layouts]
        order = torch.randperm(sum(needed), generator=torch.Generator().manual_seed(0)).tolist()
        pool = torch.full((len(order), shapes.num_layers, shapes.page_elements), torch.nan, dtype=case.dtype)
        self._pool = pool.to(case.device)
        self._pages: list[list[int]] = []
        for count in needed:
            self._pages.append(order[:count])
            order = order[count:]
        self._fill()
        limits = Limits(len(needed), max(needed), case.batch.tokens, max(case.batch.ranks))
        records = [describe([rows] * shapes.num_layers, shapes) for rows, _ in layouts]
        stays = [
            [place(record, pages, shapes, limits) for record, pages in zip(records, self._pages, strict=True)]
            for _ in range(2)
        ]
        self._stays: Iterator[list[PlacedAdapter]] = cycle(stays)
        self._kernels = LoraKernels(self._pool, shapes, limits)
        self._x = [case.inputs(linear) for linear in range(len(shapes.linears))]
        self.weight_bytes = self._pool.nbytes
        self.outputs = fresh_outputs(case)

    def _fill(self) -> None:
        case, page = self._case, self._case.shapes.page_elements
        for layer in range(case.shapes.num_layers):
            per_linear = [list(case.factors(layer, linear)) for linear in range(len(case.shapes.linears))]
            for adapter, pages in enumerate(self._pages):
                own = [factors[adapter] for factors in per_linear]
                flat = torch.cat([part.flatten() for f in own for part in (*f.a, *f.b_t)])
                room = flat.new_full((len(pages) * page,), torch.nan)
                room[: len(flat)] = flat
                self._pool[pages, layer] = room.view(-1, page)

    def prepare(self) -> None:
        """As for a batch that is not the one before it, which the launcher would skip: of adapters that came anew."""
        placed = next(self._stays)
        segments = Segments.of((placed[k], start, stop) for k, start, stop in self._case.batch.segments())
        self._kernels.plan(segments, self._case.batch.tokens)

    def add(self, layer: int, linear: int) -> None:
        self._kernels.shrink(layer, linear, self._x[linear])
        self._kernels.expand_(layer, linear, self.outputs[layer][linear])

    def poison(self) -> None:
        self._kernels.bridge.fill_(torch.nan)
        self._kernels.planes.fill_(torch.nan)
        _restore(self.outputs, self._case)


def _rank_rows(rank: int, case: Case) -> tuple[list[LinearRows | None], int]:
    """Where the factors of a layer lie, and how many elements they take: A of all slices, then each Bᵀ."""
    rows: list[LinearRows | None] = []
    at = 0
    for shape in case.shapes.linears:
        b_at, slices = at + len(shape.out_sizes) * rank * shape.in_features, []
        for number, size in enumerate(shape.out_sizes):
            slices.append(SliceRows(number * rank, rank, b_at, SCALE))
            b_at += rank * size
        rows.append(LinearRows(at, tuple(slices)))
        at = b_at
    return rows, at


class Vllm:
    """One slot per adapter, padded to the largest rank; the scale is folded into B, as vLLM does at load."""

    def __init__(self, case: Case, ops: VllmOps, specialize: bool, tuned: Tuned) -> None:
        self.name = "vLLM" + (", active count" if specialize else "")
        self._case, self._ops, self._specialize, self._tuned = case, ops, specialize, tuned
        self._configs = ops.tables.get_lora_op_configs
        layers, self._rank = range(case.shapes.num_layers), max(case.batch.ranks)
        linears = range(len(case.shapes.linears))
        self._weights = [[self._slots(layer, linear) for linear in linears] for layer in layers]
        tokens, device = case.batch.tokens, case.device
        self._meta = ops.metadata.LoRAKernelMeta.make(len(case.batch.ranks), tokens, device)
        self._mapping = case.batch.mapping(device)
        self._x = [case.inputs(linear) for linear in linears]
        self._bridges = [
            torch.empty(len(shape.out_sizes), tokens, self._rank, device=device) for shape in case.shapes.linears
        ]
        self.weight_bytes = sum(t.nbytes for layer in self._weights for pair in layer for side in pair for t in side)
        self.outputs = fresh_outputs(case)
        self._forget_former_tenants()

    def _slots(self, layer: int, linear: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        case, shape, slots = self._case, self._case.shapes.linears[linear], len(self._case.batch.ranks)
        new: dict[str, Any] = {"dtype": case.dtype, "device": case.device}
        a = [torch.zeros(slots, 1, self._rank, shape.in_features, **new) for _ in shape.out_sizes]
        b = [torch.zeros(slots, 1, size, self._rank, **new) for size in shape.out_sizes]
        for slot, factors in enumerate(case.factors(layer, linear)):
            for s, (own_a, own_b_t) in enumerate(zip(factors.a, factors.b_t, strict=True)):
                a[s][slot, 0, : len(own_a)] = own_a
                b[s][slot, 0, :, : len(own_b_t)] = own_b_t.t() * SCALE
        return a, b

    def _forget_former_tenants(self) -> None:
        """The pointer tables are keyed by address, and a case before this one may have had the same memory.

        Those of engines that are alive stay: captured graphs read them.
        """
        mine = {t.data_ptr() for layer in self._weights for pair in layer for side in pair for t in side}
        for table in (self._ops.tables._LORA_A_PTR_DICT, self._ops.tables._LORA_B_PTR_DICT):
            for key in [key for key in table if mine.intersection(key)]:
                del table[key]

    def prepare(self) -> None:
        self._meta.prepare_tensors(self._mapping)

    def add(self, layer: int, linear: int) -> None:
        arguments = self._meta.meta_args(self._case.batch.tokens, self._specialize)
        (a, b), bridge, ops = self._weights[layer][linear], self._bridges[linear], self._ops
        ops.shrink.get_lora_op_configs = ops.expand.get_lora_op_configs = self._table(linear)
        ops.shrink._lora_shrink(self._x[linear], a, bridge, *arguments, 1.0)
        ops.expand._lora_expand(bridge, b, self.outputs[layer][linear], *arguments, offset_start=0, add_inputs=True)

    def _table(self, linear: int) -> Any:
        """What a tuned file would say, asked as the kernels ask; the default otherwise."""

        def configs(op_type: str, **told: Any) -> Config:
            return {**self._configs(op_type, **told), **self._tuned.get((op_type, linear), {})}

        return configs

    def poison(self) -> None:
        for bridge in self._bridges:
            bridge.fill_(torch.nan)
        _restore(self.outputs, self._case)


class Sglang:
    """``csgmv``: padded slots, live rank read; segments of at most 16 rows, base rows in a slot of rank 0."""

    name = "SGLang csgmv"

    def __init__(self, case: Case, ops: SglangOps, tuned: Tuned) -> None:
        self._case, self._ops, self._tuned = case, ops, tuned
        self._rank, linears = max(case.batch.ranks), range(len(case.shapes.linears))
        self._weights = [[self._slots(i, linear) for linear in linears] for i in range(case.shapes.num_layers)]
        self._x = [case.inputs(linear) for linear in linears]
        self._offsets = [torch.tensor([*s.out_starts, s.out_features]) for s in case.shapes.linears]
        self._device_offsets = [offsets.to(case.device, torch.int32) for offsets in self._offsets]
        self.weight_bytes = sum(t.nbytes for layer in self._weights for pair in layer for t in pair)
        self.outputs = fresh_outputs(case)
        self._info = SimpleNamespace()

    def _slots(self, layer: int, linear: int) -> tuple[torch.Tensor, torch.Tensor]:
        case, shape, slots = self._case, self._case.shapes.linears[linear], len(self._case.batch.ranks) + 1
        new: dict[str, Any] = {"dtype": case.dtype, "device": case.device}
        a = torch.zeros(slots, len(shape.out_sizes) * self._rank, shape.in_features, **new)
        b = torch.zeros(slots, shape.out_features, self._rank, **new)
        for slot, factors in enumerate(case.factors(layer, linear), 1):
            live = torch.cat(factors.a)
            a[slot, : len(live)] = live
            for b_t, first, size in zip(factors.b_t, shape.out_starts, shape.out_sizes, strict=True):
                b[slot, first : first + size, : len(b_t)] = b_t.t()
        return a, b

    def prepare(self) -> None:
        batch, device = self._case.batch, self._case.device
        groups = [(adapter + 1, start, stop) for adapter, start, stop in batch.segments()]
        groups += [(0, batch.tokens - batch.base_rows, batch.tokens)] if batch.base_rows else []
        cuts = [(slot, at) for slot, start, stop in groups for at in range(start, stop, CHUNK_ROWS)]
        int32: dict[str, Any] = {"dtype": torch.int32, "device": device}
        self._info = SimpleNamespace(
            max_len=CHUNK_ROWS,
            num_segments=len(cuts),
            use_cuda_graph=False,
            weight_indices=torch.tensor([slot for slot, _ in cuts], **int32),
            seg_indptr=torch.tensor([*(at for _, at in cuts), batch.tokens], **int32),
            lora_ranks=torch.tensor([0, *batch.ranks], **int32),
            permutation=torch.arange(batch.tokens, **int32),
            scalings=torch.full((len(batch.ranks) + 1,), SCALE, device=device),
        )

    def add(self, layer: int, linear: int) -> None:
        (a, b), offsets, ops = self._weights[layer][linear], self._offsets[linear], self._ops
        self._configure(linear)
        split_k = self._tuned.get(("shrink", linear), {}).get("SPLIT_K")
        bridge = ops.shrink.chunked_sgmv_lora_shrink_forward(self._x[linear], a, self._info, len(offsets) - 1, split_k)
        widest = max(self._case.shapes.linears[linear].out_sizes)
        y, on_device = self.outputs[layer][linear], self._device_offsets[linear]
        ops.expand.chunked_sgmv_lora_expand_forward(bridge, b, self._info, on_device, widest, y, offsets)

    def _configure(self, linear: int) -> None:
        shrink, expand = (dict(self._tuned.get((op, linear), {})) for op in ("shrink", "expand"))
        shrink.pop("SPLIT_K", None)
        of_shrink, of_expand = self._ops.tables.get_lora_shrink_config, self._ops.tables.get_lora_expand_config
        self._ops.shrink.get_lora_shrink_config = lambda **told: {**of_shrink(**told), **shrink}
        self._ops.expand.get_lora_expand_config = lambda **told: {**of_expand(**told), **expand}

    def poison(self) -> None:
        _restore(self.outputs, self._case)


def _restore(outputs: list[list[torch.Tensor]], case: Case) -> None:
    for layer in outputs:
        for linear, y in enumerate(layer):
            y.copy_(case.outputs(linear))
