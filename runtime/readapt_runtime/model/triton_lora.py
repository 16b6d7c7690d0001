"""LoRA by the Triton kernels: two launches per fused linear for all adapters of a step."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch

from readapt_kernels.lora.launcher import LoraKernels
from readapt_kernels.lora.records import LinearRows, PlacedAdapter, SliceRows, describe, place
from readapt_kernels.lora.shapes import Limits, LinearShape, LoraShapes
from readapt_kernels.lora.work import Segment
from readapt_runtime.engine.core import Batch, ResidentAdapter
from readapt_runtime.engine.pool import PagePool
from readapt_runtime.model.adapter_image import LinearFactors
from readapt_runtime.model.config import DecoderConfig, FusedLinear, Linear


class TritonLora:
    """See ``LoraBackend``; raises UnsupportedLayout for widths without kernels."""

    def __init__(self, config: DecoderConfig, pool: PagePool, max_tokens: int, max_running: int, max_rank: int) -> None:
        self._linears = config.linears
        self._index = {linear: index for index, linear in enumerate(self._linears)}
        self._shapes = LoraShapes(
            tuple(LinearShape(f.in_features, tuple(s.size for s in f.slices)) for f in self._linears.values()),
            config.num_layers,
            pool.layout.elements,
        )
        widest = sum(len(f.slices) * f.in_features + f.out_features for f in self._linears.values())
        limits = Limits(
            max_segments=max_running,
            max_pages=-(-max_rank * widest // pool.layout.elements),
            max_tokens=max_tokens,
            max_rank=max_rank,
        )
        self._kernels = LoraKernels(pool.pages, self._shapes, limits)
        self._placed: WeakKeyDictionary[ResidentAdapter, PlacedAdapter] = WeakKeyDictionary()
        self._has_work = False

    def plan(self, batch: Batch) -> None:
        segments = [Segment(self._place(s.adapter), s.start, s.stop) for s in batch.segments]
        self._has_work = bool(segments)
        if segments:
            self._kernels.plan(segments, len(batch.token_ids))

    def run(self, layer: int, linear: Linear, x: torch.Tensor, y: torch.Tensor) -> None:
        if self._has_work:
            self._kernels.shrink(layer, self._index[linear], x)
            self._kernels.expand_(layer, self._index[linear], y)

    def _place(self, adapter: ResidentAdapter) -> PlacedAdapter:
        found = self._placed.get(adapter)
        if found is None:
            layers = [
                [_rows(directory.get(linear), fused) for linear, fused in self._linears.items()]
                for directory in adapter.variant.image.layers
            ]
            found = self._placed[adapter] = place(describe(layers, self._shapes), adapter.entry.pages, self._shapes)
        return found


def _rows(factors: LinearFactors | None, fused: FusedLinear) -> LinearRows | None:
    if factors is None:
        return None
    found = {p.out_start: SliceRows(p.rank_start, p.rank, p.b_offset, p.scale) for p in factors.slices}
    return LinearRows(factors.a_offset, tuple(found.get(part.start) for part in fused.slices))
