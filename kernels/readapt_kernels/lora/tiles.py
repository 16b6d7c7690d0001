"""The configuration table of the two kernels: our own, read by widths and token counts; nothing is tuned at run time.

The number of splits depends on the width alone and the height of a tile on the number of tokens, never on who else is
in the batch: a row's bridge is summed in the same order whatever its companions.

The pipeline spreads its stages over two loads, the page index and then the weights: 5 stages keep two weight tiles on
their way, 7 keep three. Programs per SM are what registers allow (compiled for sm_90: 90 and 72 a thread in small
tiles, 128 and 173 in large ones).
"""

from __future__ import annotations

from dataclasses import dataclass

from readapt_kernels.lora.shapes import RANK_STEP, WIDEST_RANK_TILE, LinearShape


@dataclass(frozen=True, slots=True)
class ShrinkTile:
    """One unit of shrink: ``tokens × columns`` of the bridge over a ``1 / splits`` of the input, ``wide`` at a time."""

    tokens: int
    columns: int
    wide: int
    splits: int
    stages: int
    programs_per_sm: int


@dataclass(frozen=True, slots=True)
class ExpandTile:
    """One unit of expand: ``tokens × wide`` of the output over the whole rank."""

    tokens: int
    wide: int
    stages: int
    programs_per_sm: int


@dataclass(frozen=True, slots=True)
class TileTable:
    """Tiles for a batch of ``num_tokens``; ``chunk`` bounds them, since a tile of a row lies in one page."""

    small_tokens: int = 256
    """Up to here tiles of 16 tokens: most adapters have a few rows, and each weight is read about once."""
    split_width: int = 512
    """Elements of the input per split, about."""
    max_splits: int = 16
    warps: int = 4

    def height(self, num_tokens: int) -> int:
        return 16 if num_tokens <= self.small_tokens else 64

    def shrink(self, num_tokens: int, columns: int, shape: LinearShape, chunk: int) -> ShrinkTile:
        """``columns``: the most bridge columns that an adapter of the batch has on this linear."""
        if num_tokens <= self.small_tokens:
            wide = min(chunk, 256)
            return ShrinkTile(16, RANK_STEP, wide, self.splits(shape, wide), stages=5, programs_per_sm=4)
        narrow = next((width for width in (16, 32) if columns <= width), WIDEST_RANK_TILE)
        return ShrinkTile(64, narrow, min(chunk, 64), splits=1, stages=5, programs_per_sm=3)

    def expand(self, num_tokens: int, chunk: int) -> ExpandTile:
        if num_tokens <= self.small_tokens:
            return ExpandTile(16, min(chunk, 128), stages=7, programs_per_sm=7)
        return ExpandTile(64, min(chunk, 128), stages=5, programs_per_sm=2)

    def splits(self, shape: LinearShape, wide: int) -> int:
        """Splits of about ``split_width`` elements, at most ``max_splits``, none of them empty."""
        blocks = shape.in_features // wide
        wanted = min(max(shape.in_features // self.split_width, 1), self.max_splits)
        per_split = -(-blocks // wanted)
        return -(-blocks // per_split)
