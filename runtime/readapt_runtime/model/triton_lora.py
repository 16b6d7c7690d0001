"""LoRA by the Triton kernels: two launches per fused linear for all adapters of a step."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch

from readapt_kernels.lora.launcher import LoraKernels
from readapt_kernels.lora.records import LinearRows, PlacedAdapter, SliceRows, describe, place
from readapt_kernels.lora.shapes import Limits, LinearShape, LoraShapes
from readapt_kernels.lora.tiles import TileTable
from readapt_kernels.lora.work import Tiles, WorkLayout
from readapt_runtime.engine.core import ResidentAdapter
from readapt_runtime.engine.pool import PagePool
from readapt_runtime.model.accelerator import Accelerator
from readapt_runtime.model.adapter_image import LinearFactors
from readapt_runtime.model.config import DecoderConfig, FusedLinear, Linear


class AdapterPlaces:
    """Where adapters lie, as work lists name them, and the layout of such a list.

    Raises UnsupportedLayout for widths without kernels.
    """

    def __init__(self, config: DecoderConfig, pool: PagePool, max_tokens: int, max_rows: int, max_rank: int) -> None:
        self._linears = config.linears
        shapes = LoraShapes(
            tuple(LinearShape(f.in_features, tuple(s.size for s in f.slices)) for f in self._linears.values()),
            config.num_layers,
            pool.layout.elements,
        )
        widest = sum(len(f.slices) * f.in_features + f.out_features for f in self._linears.values())
        max_pages = -(-max_rank * widest // pool.layout.elements)
        self.layout = WorkLayout(shapes, Limits(max_rows, max_pages, max_tokens, max_rank), TileTable())
        self._placed: WeakKeyDictionary[ResidentAdapter, PlacedAdapter] = WeakKeyDictionary()

    def of(self, adapter: ResidentAdapter) -> PlacedAdapter:
        found = self._placed.get(adapter)
        if found is None:
            layers = [
                [_rows(directory.get(linear), fused) for linear, fused in self._linears.items()]
                for directory in adapter.variant.image.layers
            ]
            shapes = self.layout.shapes
            found = self._placed[adapter] = place(describe(layers, shapes), adapter.entry.pages, shapes)
        return found


class TritonLora:
    """Launches over a work list in static memory; ``overlap`` shrinks beside the base's product."""

    def __init__(
        self,
        config: DecoderConfig,
        pool: PagePool,
        layout: WorkLayout,
        work: torch.Tensor,
        accelerator: Accelerator,
        overlap: bool,
    ) -> None:
        self._index = {linear: index for index, linear in enumerate(config.linears)}
        self._kernels = LoraKernels(pool.pages, layout.shapes, layout.limits, work=work)
        self._accelerator, self._overlap = accelerator, overlap

    def launches(self, tiles: Tiles | None, prompts: bool) -> LoraLaunches:
        """Those of a step. With prompts in it nothing overlaps: their products fill the device."""
        overlap = self._overlap and not prompts
        return LoraLaunches(self._kernels, self._index, tiles, self._accelerator if overlap else None)


@dataclass(frozen=True, slots=True)
class LoraLaunches:
    """See ``LayerLora``."""

    kernels: LoraKernels
    index: dict[Linear, int]
    tiles: Tiles | None
    """None: no row has an adapter."""
    beside: Accelerator | None
    """None: in order."""

    def begin(self, layer: int, linear: Linear, x: torch.Tensor) -> None:
        if self.tiles is not None and self.beside is not None:
            with self.beside.beside():
                self.kernels.shrink(layer, self.index[linear], x, tiles=self.tiles)

    def run(self, layer: int, linear: Linear, x: torch.Tensor, y: torch.Tensor) -> None:
        if self.tiles is None:
            return
        if self.beside is not None:
            self.beside.join()
        else:
            self.kernels.shrink(layer, self.index[linear], x, tiles=self.tiles)
        self.kernels.expand_(layer, self.index[linear], y, tiles=self.tiles)


def _rows(factors: LinearFactors | None, fused: FusedLinear) -> LinearRows | None:
    if factors is None:
        return None
    found = {p.out_start: SliceRows(p.rank_start, p.rank, p.b_offset, p.scale) for p in factors.slices}
    return LinearRows(factors.a_offset, tuple(found.get(part.start) for part in fused.slices))
