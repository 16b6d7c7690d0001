"""The work list of a step: what the kernels read besides weights, in one int32 buffer.

In: segments, neighbouring token rows of one adapter. Out: the host buffer, filled up to
``Step.used`` words, to be copied into a device buffer of the same layout in one transfer. The layout is fixed, and
each kernel goes by the counts at the head: what an earlier, larger batch left behind is never read, and a captured
graph serves every mix of adapters. Base rows have no segment and no work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from readapt_kernels.errors import UnsupportedLayout, WorkTooLarge
from readapt_kernels.lora.records import PlacedAdapter, directory_words
from readapt_kernels.lora.shapes import RANK_STEP, WIDEST_RANK_TILE, Limits, LoraShapes, round_up
from readapt_kernels.lora.tiles import ExpandTile, ShrinkTile, TileTable

ITEM_WORDS = 4
"""slot, first bridge column, first token, tokens."""
COUNT_WORDS = 4
"""Counts stand apart, so that every linear's pointer is aligned alike and one compiled kernel takes them all."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Token rows ``[start, stop)`` that one adapter works on."""

    adapter: PlacedAdapter
    start: int
    stop: int


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
        table, chunk = self.tiles, self.shapes.chunk
        shrink = [
            table.shrink(num_tokens, most, shape, chunk)
            for most, shape in zip(columns, self.shapes.linears, strict=True)
        ]
        return Tiles(num_tokens, tuple(shrink), table.expand(num_tokens, chunk))

    def _max_tiles(self, height: int, tokens: int) -> int:
        return min(self.limits.max_segments, tokens) + tokens // height


class WorkList:
    """The host side of the buffer."""

    def __init__(self, layout: WorkLayout, host: torch.Tensor) -> None:
        """``host``: int32 ``[layout.num_words]``, pinned where a copy should not block."""
        self.layout = layout
        self.host = host
        self._words = host.numpy()

    def fill(self, segments: Sequence[Segment], num_tokens: int) -> Step:
        """Writes the work of a batch of ``num_tokens``, base rows included; raises before anything is written."""
        _check(segments, num_tokens, self.layout.limits)
        layout = self.layout
        columns = [[s.adapter.record.columns[i] for s in segments] for i in range(len(layout.shapes.linears))]
        tiles = layout.tiles_of(num_tokens, [max(own, default=0) for own in columns])
        cut = list(_token_tiles(segments, layout.tiles.height(num_tokens)))
        for i, (own, tile) in enumerate(zip(columns, tiles.shrink, strict=True)):
            items = [w for s, at, n in cut for c in range(0, own[s], tile.columns) for w in (s, c, at, n)]
            self._put_items(i, layout.shrink_items + i * layout.shrink_stride, items)
        items = [w for slot, at, n in cut for w in (slot, 0, at, n)]
        self._put_items(len(layout.shapes.linears), layout.expand_items, items)
        return Step(self._put_adapters(segments), tiles)

    def _put_items(self, counter: int, start: int, items: list[int]) -> None:
        self._words[counter * COUNT_WORDS] = len(items) // ITEM_WORDS
        self._words[start : start + len(items)] = items

    def _put_adapters(self, segments: Sequence[Segment]) -> int:
        layout, words = self.layout, self._words
        end = layout.directories
        for slot, segment in enumerate(segments):
            record, pages = segment.adapter.record, segment.adapter.table
            table = layout.tables + slot * layout.limits.max_pages
            words[table : table + len(pages)] = pages
            layers = layout.layers + slot * layout.shapes.num_layers
            words[layers : layers + len(record.layers)] = record.layers + (end - layout.directories)
            words[end : end + len(record.directories)] = record.directories
            end += len(record.directories)
        return end


def _token_tiles(segments: Sequence[Segment], height: int) -> Iterator[tuple[int, int, int]]:
    """``(slot, first token, tokens)``: every segment cut into tiles of ``height``."""
    for slot, segment in enumerate(segments):
        for start in range(segment.start, segment.stop, height):
            yield slot, start, min(height, segment.stop - start)


def _check(segments: Sequence[Segment], num_tokens: int, limits: Limits) -> None:
    if num_tokens > limits.max_tokens:
        raise WorkTooLarge(f"{num_tokens} tokens, the buffers hold {limits.max_tokens}")
    if len(segments) > limits.max_segments:
        raise WorkTooLarge(f"{len(segments)} adapters in a batch, the buffers hold {limits.max_segments}")
    last = 0
    for segment in segments:
        pages, rank = len(segment.adapter.table), segment.adapter.record.max_rank
        if not last <= segment.start < segment.stop <= num_tokens:
            raise UnsupportedLayout(
                f"rows {segment.start} to {segment.stop} overlap, are empty or outside {num_tokens}"
            )
        if pages > limits.max_pages:
            raise WorkTooLarge(f"an adapter of {pages} pages, the buffers hold {limits.max_pages}")
        if rank > limits.max_rank:
            raise WorkTooLarge(f"an adapter of rank {rank}, the buffers hold {limits.max_rank}")
        last = segment.stop
