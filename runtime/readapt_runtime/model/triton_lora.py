"""LoRA by the Triton kernels: two launches per fused linear for all adapters of a step."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch

from readapt_kernels.lora.launcher import LoraKernels
from readapt_kernels.lora.records import AdapterRecord, LinearRows, PlacedAdapter, SliceRows, describe, place
from readapt_kernels.lora.shapes import Limits, LinearShape, LoraShapes
from readapt_kernels.lora.tiles import TileTable
from readapt_kernels.lora.work import Segments, Step, Tiles, WorkLayout, WorkList
from readapt_runtime.engine import core
from readapt_runtime.engine.pool import PagePool
from readapt_runtime.model.accelerator import Accelerator
from readapt_runtime.model.adapter_image import AdapterImage, LinearFactors
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
        self._placed: WeakKeyDictionary[core.ResidentAdapter, PlacedAdapter] = WeakKeyDictionary()

    def of(self, adapter: core.ResidentAdapter) -> PlacedAdapter:
        """Its words, which are made once per stay in the pool and go with it."""
        found = self._placed.get(adapter)
        if found is None:
            record = self._describe(adapter.variant.image)
            shapes, limits = self.layout.shapes, self.layout.limits
            found = self._placed[adapter] = place(record, adapter.entry.pages, shapes, limits)
        return found

    def _describe(self, image: AdapterImage) -> AdapterRecord:
        distinct = {id(directory): directory for directory in image.layers}  # layers that look alike share theirs
        rows = {
            key: [_rows(directory.get(linear), fused) for linear, fused in self._linears.items()]
            for key, directory in distinct.items()
        }
        return describe([rows[id(directory)] for directory in image.layers], self.layout.shapes)


class StepWork:
    """The work list of the last step that had adapters; it is written when a step's is another one."""

    def __init__(self, places: AdapterPlaces, host: torch.Tensor) -> None:
        """``host``: see ``WorkList``."""
        self._places, self._list = places, WorkList(places.layout, host)
        self._listed: tuple[Segments, int] | None = None
        self._step: Step | None = None

    def fill(self, segments: Rows[core.Segment], num_tokens: int) -> tuple[Step, int]:
        """The list of a batch, and how many of its words are news for the device; raises WorkTooLarge."""
        of = self._places.of
        wanted = Segments.of((of(s.adapter), s.start, s.stop) for s in segments), num_tokens
        if self._step is not None and self._listed == wanted:
            return self._step, 0
        self._step, self._listed = self._list.fill(*wanted), wanted
        return self._step, self._step.used


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
