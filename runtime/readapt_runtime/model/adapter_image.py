"""The image of one adapter: its factors packed into pages on the host, ready to be copied into the pool.

In: a checked ``LoraAdapter`` (PEFT folder). Out: ``AdapterImage``. Each layer is one flat stretch of rank rows, A
and Bᵀ of every module that is there, at their own rank; all layers share one page table, so the longest layer
decides the number of pages. Nothing is padded to a maximum rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch

from readapt_runtime.model.config import DecoderConfig, FusedLinear, Linear


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


@dataclass(frozen=True, slots=True, eq=False)
class AdapterImage:
    """The directory into the pages of an adapter, per layer, and how to get at them."""

    layers: tuple[Mapping[Linear, LinearFactors], ...]
    rank: int
    num_pages: int
    read: Callable[[], torch.Tensor]
    """The pages ``[num_pages, num_layers, page elements]`` on the host; may read a disk and raise ReadaptError."""
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
    packed = [_pack_layer(modules, config, linears, layer) for layer in range(config.num_layers)]
    num_pages = max(1, *(-(-sum(t.numel() for t in tensors) // page_elements) for _, tensors in packed))
    rows = torch.zeros(config.num_layers, num_pages * page_elements, dtype=dtype)
    for row, (_, tensors) in zip(rows, packed, strict=True):
        sizes = [tensor.numel() for tensor in tensors]
        for place, tensor in zip(row[: sum(sizes)].split(sizes), tensors, strict=True):
            place.view(tensor.shape).copy_(tensor)
    pages = rows.view(config.num_layers, num_pages, page_elements).transpose(0, 1)
    return AdapterImage(
        layers=tuple(directory for directory, _ in packed),
        rank=max((m.a.shape[0] for m in modules.values()), default=0),
        num_pages=num_pages,
        read=lambda: pages,
    )


def _pack_layer(
    modules: Mapping[str, LoraFactors], config: DecoderConfig, linears: Mapping[Linear, FusedLinear], layer: int
) -> tuple[Mapping[Linear, LinearFactors], list[torch.Tensor]]:
    present = [
        (linear, fused, {i: modules[name] for i, name in enumerate(names) if name in modules})
        for linear, fused in linears.items()
        for names in ([config.module_name(layer, part.module) for part in fused.slices],)
    ]
    placed = tuple(
        (linear, fused, tuple((i, f.a.shape[0], f.b.numel(), f.scale) for i, f in factors.items()))
        for linear, fused, factors in present
        if factors
    )
    tensors = [t for _, _, factors in present for t in _rank_rows(factors)]
    return _directory(placed), tensors


def _rank_rows(factors: Mapping[int, LoraFactors]) -> list[torch.Tensor]:
    return [f.a for f in factors.values()] + [f.b.t() for f in factors.values()]


_Part = tuple[int, int, int, float]
"""Slice, rows of A, elements of B and scale of a module that is there."""
_Placed = tuple[Linear, FusedLinear, tuple[_Part, ...]]


@lru_cache(maxsize=4096)
def _directory(placed: tuple[_Placed, ...]) -> Mapping[Linear, LinearFactors]:
    """One for all layers and adapters of the same modules, ranks and scales: thousands of adapters share a few."""
    directory: dict[Linear, LinearFactors] = {}
    offset = 0
    for linear, fused, parts in placed:
        directory[linear] = _place(fused, parts, offset)
        offset += sum(rows * fused.in_features + elements for _, rows, elements, _ in parts)
    return directory


def _place(fused: FusedLinear, parts: tuple[_Part, ...], offset: int) -> LinearFactors:
    rank = sum(own for _, own, _, _ in parts)
    slices, rank_start, b_offset = [], 0, offset + rank * fused.in_features
    for i, own, elements, scale in parts:
        part = fused.slices[i]
        slices.append(SliceFactors(rank_start, own, b_offset, part.start, part.size, scale))
        rank_start += own
        b_offset += elements
    return LinearFactors(offset, rank, fused.in_features, tuple(slices))
