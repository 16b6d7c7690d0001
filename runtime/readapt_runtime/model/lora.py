"""LoRA on the fused linears of a mixed batch: the protocols, and the backend in plain torch.

Rows are sorted by adapter, so an adapter works on neighbouring tokens; base rows come first and have no work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from readapt_kernels.lora.reference import expand_, shrink
from readapt_runtime.engine.core import Batch, ResidentAdapter, Segment
from readapt_runtime.engine.pool import PagePool
from readapt_runtime.model.adapter_image import LinearFactors
from readapt_runtime.model.config import Linear


class LayerLora(Protocol):
    def begin(self, layer: int, linear: Linear, x: torch.Tensor) -> None:
        """Before the base's product of x ``[tokens, in]``: starts what may run beside it."""
        ...

    def run(self, layer: int, linear: Linear, x: torch.Tensor, y: torch.Tensor) -> None:
        """Adds each adapter's part to its rows: x ``[tokens, in]``, y ``[tokens, out]``, in place."""
        ...


class LoraBackend(LayerLora, Protocol):
    def plan(self, batch: Batch) -> None:
        """Prepares the step's work list; valid until the next plan."""
        ...


class TorchLora:
    """Two small products per adapter and fused linear, at the adapter's own rank, reading the pool's pages."""

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._segments: Sequence[Segment] = ()

    def plan(self, batch: Batch) -> None:
        self.take(batch.segments)

    def take(self, segments: Sequence[Segment]) -> None:
        """The work list itself: some segments of a batch."""
        self._segments = segments

    def begin(self, layer: int, linear: Linear, x: torch.Tensor) -> None:
        pass

    def run(self, layer: int, linear: Linear, x: torch.Tensor, y: torch.Tensor) -> None:
        for segment in self._segments:
            factors = segment.adapter.variant.image.layers[layer].get(linear)
            if factors is not None:
                rows = slice(segment.start, segment.stop)
                _apply(factors, self._rows(segment.adapter, layer), x[rows], y[rows])

    def _rows(self, adapter: ResidentAdapter, layer: int) -> torch.Tensor:
        """The adapter's rank rows of a layer, flat: a view where its pages are neighbours, else gathered."""
        return adapter.flat[layer] if adapter.flat is not None else self._pool.flat(adapter.entry, layer)


def _apply(factors: LinearFactors, flat: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> None:
    size = factors.rank * factors.in_features
    a = flat[factors.a_offset : factors.a_offset + size].view(factors.rank, factors.in_features)
    bridge = shrink(x, a)
    for part in factors.slices:
        b_t = flat[part.b_offset : part.b_offset + part.rank * part.out_size].view(part.rank, part.out_size)
        columns = y[:, part.out_start : part.out_start + part.out_size]
        expand_(columns, bridge[:, part.rank_start : part.rank_start + part.rank], b_t, part.scale)
