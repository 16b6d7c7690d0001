"""A batch over many adapters, its random factors, and what it should give in fp64: engine by engine the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from readapt_kernels.lora.reference import expand_, shrink
from readapt_kernels.lora.shapes import LinearShape, LoraShapes

SCALE = 0.5
"""α/r of every adapter: a power of two, so that engines that fold it into B round nothing again."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Adapters by rank, and how many neighbouring token rows each has; rows of the base stand last."""

    name: str
    ranks: tuple[int, ...]
    rows: tuple[int, ...]
    base_rows: int = 0

    @property
    def tokens(self) -> int:
        return sum(self.rows) + self.base_rows

    def segments(self) -> Iterator[tuple[int, int, int]]:
        """``(adapter, start, stop)`` of those that have rows."""
        start = 0
        for adapter, rows in enumerate(self.rows):
            if rows:
                yield adapter, start, start + rows
            start += rows

    def mapping(self, device: torch.device) -> torch.Tensor:
        """int64 ``[tokens]``: the adapter of each row, -1 for the base."""
        each = [adapter for adapter, start, stop in self.segments() for _ in range(start, stop)]
        return torch.tensor(each + [-1] * self.base_rows, device=device)


@dataclass(frozen=True, slots=True)
class Factors:
    """One adapter on one fused linear of one layer: per slice A ``[rank, in]`` and Bᵀ ``[rank, out]``."""

    a: tuple[torch.Tensor, ...]
    b_t: tuple[torch.Tensor, ...]


@dataclass(frozen=True, slots=True)
class Case:
    """A batch on a model. Factors and inputs are drawn anew by every engine that asks: same seed, same numbers."""

    batch: Batch
    shapes: LoraShapes
    dtype: torch.dtype
    device: torch.device

    def factors(self, layer: int, linear: int) -> Iterator[Factors]:
        """Those of every adapter; distinct for each layer and linear."""
        shape, generator = self.shapes.linears[linear], self._generator(1 + layer * len(self.shapes.linears) + linear)
        for rank in self.batch.ranks:
            a = tuple(self._draw(generator, rank, shape.in_features) for _ in shape.out_sizes)
            yield Factors(a, tuple(self._draw(generator, rank, size, scale=1.0) for size in shape.out_sizes))

    def inputs(self, linear: int) -> torch.Tensor:
        """x ``[tokens, in]``."""
        width = self.shapes.linears[linear].in_features
        return self._draw(self._generator(10_000 + linear), self.batch.tokens, width, scale=1.0)

    def outputs(self, linear: int) -> torch.Tensor:
        """y ``[tokens, out]`` as the base's product left it."""
        width = self.shapes.linears[linear].out_features
        return self._draw(self._generator(20_000 + linear), self.batch.tokens, width, scale=1.0)

    def expected(self, layer: int, linear: int) -> torch.Tensor:
        """fp64 ``[tokens, out]``."""
        shape, x = self.shapes.linears[linear], self.inputs(linear).double()
        y, factors = self.outputs(linear).double(), list(self.factors(layer, linear))
        for adapter, start, stop in self.batch.segments():
            parts = zip(factors[adapter].a, factors[adapter].b_t, shape.out_starts, shape.out_sizes, strict=True)
            for a, b_t, first, size in parts:
                bridge = shrink(x[start:stop], a.double())
                expand_(y[start:stop, first : first + size], bridge, b_t.double(), SCALE)
        return y

    @property
    def weight_bytes(self) -> int:
        """Factors of the adapters that have rows: what a step must read at least."""
        used = sum(self.batch.ranks[adapter] for adapter, _, _ in self.batch.segments())
        widths = sum(len(s.out_sizes) * s.in_features + s.out_features for s in self.shapes.linears)
        return used * widths * self.shapes.num_layers * self.dtype.itemsize

    def _generator(self, seed: int) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(seed)

    def _draw(self, generator: torch.Generator, *shape: int, scale: float | None = None) -> torch.Tensor:
        drawn = torch.randn(*shape, generator=generator, device=self.device)
        return (drawn * (shape[-1] ** -0.5 if scale is None else scale)).to(self.dtype)


def llama_8b(layers: int = 32) -> LoraShapes:
    """Llama-3.1-8B: qkv, o, gate-up, down; pages of 16 tokens of KV."""
    hidden, inner = 4096, 14336
    linears = (
        LinearShape(hidden, (hidden, 1024, 1024)),
        LinearShape(hidden, (hidden,)),
        LinearShape(hidden, (inner, inner)),
        LinearShape(inner, (hidden,)),
    )
    return LoraShapes(linears, layers, page_elements=32768)


def tiny() -> LoraShapes:
    """All kinds of fused linears at widths that the interpreter gets through."""
    linears = (
        LinearShape(64, (64, 32, 32)),
        LinearShape(64, (64,)),
        LinearShape(64, (96, 96)),
        LinearShape(96, (64,)),
    )
    return LoraShapes(linears, num_layers=2, page_elements=2048)


def decode_batches() -> tuple[Batch, ...]:
    """32 tokens, one per adapter: H1, H2, H3."""
    one = (1,) * 32
    return (
        Batch("H1: 32 × r 16", (16,) * 32, one),
        Batch("H2: r 8/16/32/64", (8, 16, 32, 64) * 8, one),
        Batch("H3: 90 % r 8, 10 % r 64", (8,) * 29 + (64,) * 3, one),
    )


def checked_batch() -> Batch:
    """Ragged ranks and rows, an adapter without rows, base rows."""
    return Batch("check", (8, 16, 16, 32), (3, 0, 1, 18), base_rows=2)
