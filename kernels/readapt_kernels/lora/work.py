"""The work list of a step: what the kernels read besides weights, in one int32 buffer.

In: segments, neighbouring token rows of one adapter. Out: the host buffer, filled up to
``Step.used`` words, to be copied into a device buffer of the same layout in one transfer. The layout is fixed, and
each kernel goes by the counts at the head: what an earlier, larger batch left behind is never read, and a captured
graph serves every mix of adapters. Base rows have no segment and no work.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from readapt_kernels.errors import UnsupportedLayout, WorkTooLarge
from readapt_kernels.lora.records import PlacedAdapter, Words, directory_words, slot_type
from readapt_kernels.lora.shapes import RANK_STEP, WIDEST_RANK_TILE, Limits, LoraShapes, round_up
from readapt_kernels.lora.tiles import ExpandTile, ShrinkTile, TileTable

ITEM_WORDS = 4
"""slot, first bridge column, first token, tokens."""
COUNT_WORDS = 4
"""Counts stand apart, so that every linear's pointer is aligned alike and one compiled kernel takes them all."""

Integers = NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class Segments:
    """Neighbouring token rows ``[start, stop)`` of one adapter each; in columns: every step makes and compares them."""

    adapters: tuple[PlacedAdapter, ...]
    starts: tuple[int, ...]
    stops: tuple[int, ...]

    @classmethod
    def of(cls, rows: Iterable[tuple[PlacedAdapter, int, int]]) -> Segments:
        """Adapter, start and stop of each."""
        adapters, starts, stops = tuple(zip(*rows, strict=True)) or ((), (), ())
        return cls(adapters, starts, stops)


@dataclass(frozen=True, slots=True)
class Tiles:
    """What a batch of ``num_tokens`` is cut into: all that a launch depends on besides what is in memory."""

    num_tokens: int
    shrink: tuple[ShrinkTile, ...]
    expand: ExpandTile


@dataclass(frozen=True, slots=True)
class Step:
    """The tiles that a filled work list was cut for, and how many words of it count."""

    used: int
    tiles: Tiles


class WorkLayout:
    """Where each section begins, in words; decided by shapes, limits and the tile table alone.

    counts | shrink items of each linear | expand items | page tables | layers' directories | directories
    """

    def __init__(self, shapes: LoraShapes, limits: Limits, tiles: TileTable) -> None:
        self.shapes, self.limits, self.tiles = shapes, limits, tiles
        self.bridge_width = limits.bridge_width(shapes.max_slices)
        low = self._max_tiles(16, min(limits.max_tokens, tiles.small_tokens))
        high = self._max_tiles(64, limits.max_tokens)
        self.max_small_items = round_up(low * (self.bridge_width // RANK_STEP), 4)
        self.max_shrink_items = max(self.max_small_items, high * (self.bridge_width // WIDEST_RANK_TILE))
        self.max_expand_items = max(low, high)
        linears = len(shapes.linears)
        self.shrink_items = (linears + 1) * COUNT_WORDS
        self.shrink_stride = self.max_shrink_items * ITEM_WORDS
        self.expand_items = self.shrink_items + linears * self.shrink_stride
        self.tables = self.expand_items + self.max_expand_items * ITEM_WORDS
        self.layers = self.tables + round_up(limits.max_segments * limits.max_pages, 4)
        self.directories = self.layers + round_up(limits.max_segments * shapes.num_layers, 4)
        self._small = self._cut(0, [0] * linears)
        self.num_words = self.directories + limits.max_segments * shapes.num_layers * directory_words(shapes)

    def small_tiles(self, num_tokens: int) -> Tiles:
        """Of a batch of at most ``TileTable.small_tokens``, whatever its adapters: what a captured graph launches."""
        if num_tokens > self.tiles.small_tokens:
            raise UnsupportedLayout(f"the tiles of {num_tokens} tokens depend on the adapters")
        return self.tiles_of(num_tokens, [0] * len(self.shapes.linears))

    def all_tiles(self) -> list[Tiles]:
        """One batch, as large as may be, for each set of kernels that batches launch."""
        most, few = self.limits.max_tokens, self.tiles.small_tokens
        small = self.small_tiles(min(most, few))
        widths = range(RANK_STEP, self.bridge_width + 1, RANK_STEP)
        large = [self.tiles_of(most, [width] * len(self.shapes.linears)) for width in widths] if most > few else []
        return [small, *dict.fromkeys(large)]

    def tiles_of(self, num_tokens: int, columns: Sequence[int]) -> Tiles:
        """``columns``: per linear the most bridge columns that an adapter of the batch has."""
        if num_tokens <= self.tiles.small_tokens:
            return replace(self._small, num_tokens=num_tokens)
        return self._cut(num_tokens, columns)

    def _cut(self, num_tokens: int, columns: Sequence[int]) -> Tiles:
        table, chunk = self.tiles, self.shapes.chunk
        shrink = [
            table.shrink(num_tokens, most, shape, chunk)
            for most, shape in zip(columns, self.shapes.linears, strict=True)
        ]
        return Tiles(num_tokens, tuple(shrink), table.expand(num_tokens, chunk))

    def _max_tiles(self, height: int, tokens: int) -> int:
        return min(self.limits.max_segments, tokens) + tokens // height


class WorkList:
    """The host side of the buffer. Filled without a loop over items or words: a step waits for it."""

    def __init__(self, layout: WorkLayout, host: torch.Tensor) -> None:
        """``host``: int32 ``[layout.num_words]``, pinned where a copy should not block."""
        self.layout = layout
        self.host = host
        words: Words = host.numpy()
        shapes, limits = layout.shapes, layout.limits
        self._slot_type = slot_type(shapes, limits)
        self._counts = words[: layout.shrink_items : COUNT_WORDS]
        self._shrink = words[layout.shrink_items : layout.expand_items].reshape(len(shapes.linears), -1, ITEM_WORDS)
        self._expand = words[layout.expand_items : layout.tables].reshape(-1, ITEM_WORDS)
        self._tables = words[layout.tables :][: limits.max_segments * limits.max_pages].reshape(-1, limits.max_pages)
        self._layers = words[layout.layers :][: limits.max_segments * shapes.num_layers].reshape(-1, shapes.num_layers)
        self._directories = words[layout.directories :]

    def fill(self, segments: Segments, num_tokens: int) -> Step:
        """Writes the work of a batch of ``num_tokens``, base rows included; raises before anything is written."""
        layout = self.layout
        _check(segments, num_tokens, layout.limits)
        slots: Any = np.frombuffer(b"".join([adapter.slot for adapter in segments.adapters]), dtype=self._slot_type)
        columns = slots["columns"].T
        most = columns.max(axis=1, initial=0).tolist()
        tiles = layout.tiles_of(num_tokens, most)
        owners = self._put_rows(segments, layout.tiles.height(num_tokens))
        self._put_columns(columns.take(owners, axis=1), max(most), tiles.shrink)
        return Step(self._put_adapters(segments, slots), tiles)

    def _put_rows(self, segments: Segments, height: int) -> Integers:
        """Expand's items: every segment cut into tiles of ``height``. Which slot each is of."""
        starts, stops = np.array(segments.starts, dtype=np.int32), np.array(segments.stops, dtype=np.int32)
        rows = stops - starts
        firsts = np.arange(0, rows.max(initial=0), height, dtype=np.int32)
        slots, nth = (rows[:, None] > firsts).nonzero()
        items = self._expand[: len(slots)]
        items[:, 0], items[:, 1], items[:, 2] = slots, 0, starts.take(slots) + firsts.take(nth)
        np.minimum(stops.take(slots) - items[:, 2], height, out=items[:, 3])
        self._counts[-1] = len(items)
        return slots

    def _put_columns(self, columns: Integers, most: int, tiles: Sequence[ShrinkTile]) -> None:
        """Shrink's items: expand's, cut along their ``columns`` ``[linears, expand's items]``, at most ``most``."""
        widths = np.array([tile.columns for tile in tiles], dtype=np.int32)
        firsts = widths[:, None] * np.arange(-(-most // RANK_STEP), dtype=np.int32)
        linears, of, nth = (columns[:, :, None] > firsts[:, None, :]).nonzero()
        items = self._expand.take(of, axis=0)
        items[:, 1] = widths.take(linears) * nth
        ends = [0, *linears.searchsorted(np.arange(1, len(tiles) + 1)).tolist()]
        for i, (start, end) in enumerate(pairwise(ends)):
            self._shrink[i, : end - start] = items[start:end]
            self._counts[i] = end - start

    def _put_adapters(self, segments: Segments, slots: Any) -> int:
        """The words of the adapters, slot by slot; how many words of the buffer count."""
        count, ends = len(slots), slots["directory_words"].cumsum(dtype=np.int32)
        words = np.frombuffer(b"".join([adapter.directories for adapter in segments.adapters]), dtype=np.int32)
        self._tables[:count] = slots["table"]
        np.add(slots["layers"], (ends - slots["directory_words"])[:, None], out=self._layers[:count])
        self._directories[: len(words)] = words
        return self.layout.directories + len(words)


def _check(segments: Segments, num_tokens: int, limits: Limits) -> None:
    if num_tokens > limits.max_tokens:
        raise WorkTooLarge(f"{num_tokens} tokens, the buffers hold {limits.max_tokens}")
    if len(segments.adapters) > limits.max_segments:
        raise WorkTooLarge(f"{len(segments.adapters)} adapters in a batch, the buffers hold {limits.max_segments}")
    last = 0
    for start, stop in zip(segments.starts, segments.stops, strict=True):
        if not last <= start < stop <= num_tokens:
            raise UnsupportedLayout(f"rows {start} to {stop} overlap, are empty or outside {num_tokens}")
        last = stop
