"""What is fixed for the life of an engine: widths of the fused linears, the page, the maxima of a batch.

A *chunk* is the largest power of two, at most 256, that divides every row of every factor and the page: a chunk of a
rank row never crosses a page, so one page index serves a whole tile. Offsets are counted in chunks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from readapt_kernels.errors import UnsupportedLayout

MAX_CHUNK = 256
MIN_CHUNK = 16
"""The narrowest side that ``tl.dot`` takes; below it rows would have to be padded."""
RANK_STEP = 16
"""Each slice's bridge columns start at a multiple of this, so that they are read in whole vectors."""
WIDEST_RANK_TILE = 64


@dataclass(frozen=True, slots=True)
class LinearShape:
    """A fused linear: modules that read the same input, their outputs side by side."""

    in_features: int
    out_sizes: tuple[int, ...]

    @property
    def out_features(self) -> int:
        return sum(self.out_sizes)

    @property
    def out_starts(self) -> tuple[int, ...]:
        return tuple(sum(self.out_sizes[:i]) for i in range(len(self.out_sizes)))


@dataclass(frozen=True, slots=True)
class LoraShapes:
    """The model's fused linears, in the order that calls number them, and the page that holds rank rows."""

    linears: tuple[LinearShape, ...]
    num_layers: int
    page_elements: int
    """Elements of a page in one layer."""

    def __post_init__(self) -> None:
        if self.chunk < MIN_CHUNK:
            raise UnsupportedLayout(
                f"rows of {sorted(self._widths)} elements in pages of {self.page_elements} share only the power of two "
                f"{self.chunk}; the kernels need {MIN_CHUNK}: pad the rows"
            )

    @property
    def _widths(self) -> set[int]:
        return {width for linear in self.linears for width in (linear.in_features, *linear.out_sizes)}

    @property
    def chunk(self) -> int:
        divisor = math.gcd(self.page_elements, *self._widths)
        return min(divisor & -divisor, MAX_CHUNK)

    @property
    def chunks_per_page(self) -> int:
        return self.page_elements // self.chunk

    @property
    def max_slices(self) -> int:
        return max(len(linear.out_sizes) for linear in self.linears)


@dataclass(frozen=True, slots=True)
class Limits:
    """The maxima that static buffers are sized for."""

    max_segments: int
    """Adapters in one batch."""
    max_pages: int
    """Pages of one adapter."""
    max_tokens: int
    """Tokens of one batch, base rows included."""
    max_rank: int
    """Rank of one module."""

    def __post_init__(self) -> None:
        for name in ("max_segments", "max_pages", "max_tokens", "max_rank"):
            if getattr(self, name) < 1:
                raise UnsupportedLayout(f"{name} must be positive, not {getattr(self, name)}")

    def bridge_width(self, max_slices: int) -> int:
        """Columns of the bridge: every slice at the maximum rank, in whole tiles of the widest shrink."""
        return round_up(max_slices * round_up(self.max_rank, RANK_STEP), WIDEST_RANK_TILE)


def round_up(value: int, step: int) -> int:
    return -(-value // step) * step
