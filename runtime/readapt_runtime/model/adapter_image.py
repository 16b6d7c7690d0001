"""The image of one adapter: its factors packed into pages on the host, ready to be copied into the pool.

In: a checked ``LoraAdapter`` (PEFT folder). Out: ``AdapterImage``. Each layer is one flat stretch of rank rows, A
and Bᵀ of every module that is there, at their own rank; all layers share one page table, so the longest layer
decides the number of pages. Nothing is padded to a maximum rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Protocol

import torch

from readapt_runtime.model.config import DecoderConfig, FusedLinear, Linear
from readapt_runtime.recycled_memory import ADAPTER_MEMORY


class LoraFactors(Protocol):
    """One module of an adapter: A ``[rank, in]``, B ``[out, rank]`` and the scale of their product."""

    @property
    def a(self) -> torch.Tensor: ...
    @property
    def b(self) -> torch.Tensor: ...
    @property
    def scale(self) -> float: ...


@dataclass(frozen=True, slots=True)
class SliceFactors:
    """Where Bᵀ of one module lies: elements from ``b_offset``, bridge columns from ``rank_start``."""

    rank_start: int
    rank: int
    b_offset: int
    b_rank: int
    """Rows of Bᵀ: the rank, or that of all ranks together where they share out A along it."""
    out_start: int
    out_size: int
    scale: float


@dataclass(frozen=True, slots=True)
class LinearFactors:
    """Where the factors for one fused linear lie: the A rows of its slices together, then Bᵀ slice by slice."""

    a_offset: int
    rank: int
    """Sum over the slices."""
    in_features: int
    slices: tuple[SliceFactors, ...]


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Shares:
    """What other ranks hold of one adapter, under a number; they let go of it once nothing refers to this any more."""

    number: int


@dataclass(frozen=True, slots=True, eq=False)
class HostPages:
    """The pages of an adapter on the host: here, and on the other ranks."""

    here: torch.Tensor
    """``[num_pages, num_layers, page elements]``."""
    shares: Shares | None = None


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class AdapterImage:
    """The directory into the pages of an adapter, per layer, and how to get at them."""

    layers: tuple[Mapping[Linear, LinearFactors], ...]
    rank: int
    num_pages: int
    read: Callable[[], HostPages]
    """The pages; may read a disk and raise ReadaptError."""
    fully_sharded: bool = False
    """Whether ranks share out A of every module along the rank, and exchange what they make of their part."""


def pack_adapter(
    modules: Mapping[str, LoraFactors],
    config: DecoderConfig,
    page_elements: int,
    dtype: torch.dtype,
    linears: Mapping[Linear, FusedLinear] | None = None,
) -> AdapterImage:
    """Packs the modules (full names, any subset) into pages of ``page_elements`` per layer.

    ``linears`` say which outputs the factors work on; those of the config, unless the factors are a part of them.
    """
    linears = linears or config.linears
    placed = [_placed(modules, config, linears, layer) for layer in range(config.num_layers)]
    directories = [_directory(parts) for parts, _ in placed]
    lengths = [sum(t.numel() for t in tensors) for _, tensors in placed]
    num_pages = max(1, *(-(-length // page_elements) for length in lengths))
    width = num_pages * page_elements
    rows = ADAPTER_MEMORY.allocate(config.num_layers * width * dtype.itemsize).view(dtype)
    padding = torch.zeros(width, dtype=dtype)
    pieces = [
        piece
        for length, (_, tensors) in zip(lengths, placed, strict=True)
        for piece in (*(t.reshape(-1) for t in tensors), padding[length:])
    ]
    torch.cat(pieces, out=rows)
    _transpose_b(rows.view(config.num_layers, width), directories)
    pages = HostPages(rows.view(config.num_layers, num_pages, page_elements).transpose(0, 1))
    return AdapterImage(
        layers=tuple(directories),
        rank=max((m.a.shape[0] for m in modules.values()), default=0),
        num_pages=num_pages,
        read=lambda: pages,
    )


def _placed(
    modules: Mapping[str, LoraFactors], config: DecoderConfig, linears: Mapping[Linear, FusedLinear], layer: int
) -> tuple[tuple[_Placed, ...], list[torch.Tensor]]:
    """What is there of a layer, and its factors in their order: A of all slices of a fused linear, then B."""
    placed: list[_Placed] = []
    tensors: list[torch.Tensor] = []
    for linear, fused in linears.items():
        names = [config.module_name(layer, part.module) for part in fused.slices]
        factors = {i: modules[name] for i, name in enumerate(names) if name in modules}
        if factors:
            parts = tuple((i, f.a.shape[0], f.b.shape[1], f.scale) for i, f in factors.items())
            placed.append((linear, fused, parts))
            tensors += [f.a for f in factors.values()] + [f.b for f in factors.values()]
    return tuple(placed), tensors


def _transpose_b(rows: torch.Tensor, directories: Sequence[Mapping[Linear, LinearFactors]]) -> None:
    """B as it is stored becomes Bᵀ in its place, for neighbouring layers that look alike at once."""
    for directory, run in groupby(range(len(directories)), key=lambda layer: directories[layer]):
        layers = list(run)
        own = rows[layers[0] : layers[-1] + 1]
        for part in (part for factors in directory.values() for part in factors.slices):
            stored = own[:, part.b_offset : part.b_offset + part.b_rank * part.out_size]
            b = stored.reshape(len(layers), part.out_size, part.b_rank)
            stored.copy_(b.transpose(1, 2).flatten(1))


_Part = tuple[int, int, int, float]
"""Slice, rows of A, columns of B and scale of a module that is there."""
_Placed = tuple[Linear, FusedLinear, tuple[_Part, ...]]


@lru_cache(maxsize=4096)
def _directory(placed: tuple[_Placed, ...]) -> Mapping[Linear, LinearFactors]:
    """One for all layers and adapters of the same modules, ranks and scales: thousands of adapters share a few."""
    directory: dict[Linear, LinearFactors] = {}
    offset = 0
    for linear, fused, parts in placed:
        directory[linear], offset = _place(fused, parts, offset)
    return directory


def _place(fused: FusedLinear, parts: tuple[_Part, ...], offset: int) -> tuple[LinearFactors, int]:
    """From ``offset`` on, and where the next one begins."""
    rank = sum(own for _, own, _, _ in parts)
    slices, rank_start, b_offset = [], 0, offset + rank * fused.in_features
    for i, own, b_rank, scale in parts:
        part = fused.slices[i]
        slices.append(SliceFactors(rank_start, own, b_offset, b_rank, part.start, part.size, scale))
        rank_start += own
        b_offset += b_rank * part.size
    return LinearFactors(offset, rank, fused.in_features, tuple(slices)), b_offset
