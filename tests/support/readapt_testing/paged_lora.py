"""Adapters of random factors in a paged pool, and what a per-request loop in fp64 says of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from readapt_kernels.lora.launcher import LoraKernels
from readapt_kernels.lora.records import AdapterRecord, LinearRows, PlacedAdapter, SliceRows, describe, place
from readapt_kernels.lora.reference import expand_, shrink
from readapt_kernels.lora.shapes import Limits, LinearShape, LoraShapes
from readapt_kernels.lora.tiles import TileTable
from readapt_kernels.lora.work import Segments

QKV, O, GATE_UP, DOWN = range(4)  # noqa: E741 - the field's own name
# SmolLM2-135M: widths 576 = 9 * 64, 192 = 3 * 64, 1536; a page of 16 tokens of KV.
SMOL = LoraShapes(
    (
        LinearShape(576, (576, 192, 192)),
        LinearShape(576, (576,)),
        LinearShape(576, (1536, 1536)),
        LinearShape(1536, (576,)),
    ),
    num_layers=2,
    page_elements=6144,
)
LIMITS = Limits(max_segments=8, max_pages=128, max_tokens=96, max_rank=128)

Ranks = dict[int, tuple[int, ...]]
"""Per fused linear the rank of each slice; 0 where the module is missing."""


@dataclass(frozen=True, slots=True)
class Module:
    a: torch.Tensor  # [rank, in]
    b_t: torch.Tensor  # [rank, out]
    scale: float


@dataclass(frozen=True, slots=True)
class Adapter:
    modules: tuple[dict[tuple[int, int], Module], ...]
    """Per layer, by linear and slice."""
    flat: torch.Tensor  # [layers, elements]
    record: AdapterRecord


def make_adapter(ranks: Ranks, dtype: torch.dtype, seed: int, shapes: LoraShapes = SMOL, layers: int = 3) -> Adapter:
    """Random factors; ``layers`` is a bit mask of the layers that are adapted."""
    generator = torch.Generator().manual_seed(seed)
    adapted = [ranks if layers >> layer & 1 else {} for layer in range(shapes.num_layers)]
    made = [_layer(own, dtype, generator, shapes) for own in adapted]
    width = max(flat.numel() for _, _, flat in made)
    flat = torch.stack([torch.cat([flat, flat.new_full([width - flat.numel()], torch.nan)]) for _, _, flat in made])
    return Adapter(tuple(m for m, _, _ in made), flat, describe([rows for _, rows, _ in made], shapes))


def _layer(
    ranks: Ranks, dtype: torch.dtype, generator: torch.Generator, shapes: LoraShapes
) -> tuple[dict[tuple[int, int], Module], list[LinearRows | None], torch.Tensor]:
    modules: dict[tuple[int, int], Module] = {}
    rows: list[LinearRows | None] = []
    flat = torch.empty(0, dtype=dtype)
    for i, shape in enumerate(shapes.linears):
        own = ranks.get(i, ())
        if not any(own):
            rows.append(None)
            continue
        for s, (rank, size) in enumerate(zip(own, shape.out_sizes, strict=True)):
            a = torch.randn(rank, shape.in_features, generator=generator) / shape.in_features**0.5
            b_t = torch.randn(rank, size, generator=generator)
            modules[i, s] = Module(a.to(dtype), b_t.to(dtype), 0.5 + 0.75 * s - 0.1 * i)
        a_offset, offset = flat.numel(), flat.numel() + sum(own) * shape.in_features
        slices: list[SliceRows | None] = []
        for s, (rank, size) in enumerate(zip(own, shape.out_sizes, strict=True)):
            slices.append(SliceRows(sum(own[:s]), rank, offset, modules[i, s].scale) if rank else None)
            offset += rank * size
        parts = [modules[i, s] for s in range(len(own))]
        flat = torch.cat([flat, *(m.a.flatten() for m in parts), *(m.b_t.flatten() for m in parts)])
        rows.append(LinearRows(a_offset, tuple(slices)))
    return {key: m for key, m in modules.items() if len(m.a)}, rows, flat


class Bench:
    """A pool of NaN with adapters on permuted pages, and kernels whose scratch memory starts as NaN."""

    def __init__(
        self,
        adapters: Sequence[Adapter],
        seed: int = 0,
        shapes: LoraShapes = SMOL,
        limits: Limits = LIMITS,
        tiles: TileTable | None = None,
        programs: int | None = None,
        flights: int = 1,
    ) -> None:
        self.shapes, self.adapters = shapes, adapters
        self.dtype = adapters[0].flat.dtype
        needed = [-(-a.flat.shape[1] // shapes.page_elements) for a in adapters]
        order = torch.randperm(sum(needed) + 5, generator=torch.Generator().manual_seed(seed)).tolist()
        self.pool = torch.full([len(order), shapes.num_layers, shapes.page_elements], torch.nan, dtype=self.dtype)
        self.placed: list[PlacedAdapter] = []
        for adapter, count in zip(adapters, needed, strict=True):
            mine, order = order[:count], order[count:]
            self.placed.append(place(adapter.record, mine, shapes, limits))
            for at, page in enumerate(mine):
                part = adapter.flat[:, at * shapes.page_elements : (at + 1) * shapes.page_elements]
                self.pool[page, :, : part.shape[1]] = part
        self.kernels = LoraKernels(self.pool, shapes, limits, tiles=tiles, programs=programs, flights=flights)
        self.kernels.bridge.fill_(torch.nan)
        self.kernels.planes.fill_(torch.nan)
        self.kernels.work.fill_(2**30)

    def segments(self, rows: Sequence[tuple[int, int, int]]) -> Segments:
        """``(adapter, start, stop)`` as segments."""
        return Segments.of((self.placed[i], start, stop) for i, start, stop in rows)

    def run(
        self, rows: Sequence[tuple[int, int, int]], linear: int, x: torch.Tensor, y: torch.Tensor, layer: int = 1
    ) -> torch.Tensor:
        """Plans, shrinks and expands into a copy of y."""
        out = y.clone()
        self.kernels.plan(self.segments(rows), len(x))
        self.kernels.shrink(layer, linear, x)
        self.kernels.expand_(layer, linear, out)
        return out

    def expected(
        self, rows: Sequence[tuple[int, int, int]], linear: int, x: torch.Tensor, y: torch.Tensor, layer: int = 1
    ) -> torch.Tensor:
        """The same in fp64, adapter by adapter, with no pages involved."""
        out = y.double()
        for i, start, stop in rows:
            for (of, s), module in self.adapters[i].modules[layer].items():
                if of == linear:
                    shape = self.shapes.linears[linear]
                    first = shape.out_starts[s]
                    bridge = shrink(x[start:stop].double(), module.a.double())
                    columns = out[start:stop, first : first + shape.out_sizes[s]]
                    expand_(columns, bridge, module.b_t.double(), module.scale)
        return out


def inputs(
    tokens: int, linear: int, dtype: torch.dtype, shapes: LoraShapes = SMOL
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random x and y for a fused linear."""
    generator = torch.Generator().manual_seed(tokens)
    shape = shapes.linears[linear]
    x = torch.randn(tokens, shape.in_features, generator=generator)
    y = torch.randn(tokens, shape.out_features, generator=generator)
    return x.to(dtype), y.to(dtype)
