"""The image of one adapter: its factors packed into pages on the host, ready to be copied into the pool.

In: a checked adapter (PEFT folder). Out: ``AdapterImage``. Each layer is one flat stretch of rank rows, A and Bᵀ of
every module that is there, at their own rank; all layers share one page table, so the longest layer decides the number
of pages. Nothing is padded to a maximum rank. Where everything lies follows from the shapes alone: packing, which is
as much work as reading, waits until the pages are wanted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from threading import Lock
from typing import Protocol

import torch

from readapt_runtime.model.config import DecoderConfig, FusedLinear, Linear
from readapt_runtime.recycled_memory import ADAPTER_MEMORY

_PLANS = 32


class LoraFactors(Protocol):
    """One module of an adapter: A ``[rank, in]``, B ``[out, rank]`` and the scale of their product."""

    @property
    def a(self) -> torch.Tensor: ...
    @property
    def b(self) -> torch.Tensor: ...
    @property
    def scale(self) -> float: ...


class Shaped(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...


class FactorShapes(Protocol):
    """What ``LoraFactors`` look like, without their values."""

    @property
    def a(self) -> Shaped: ...
    @property
    def b(self) -> Shaped: ...
    @property
    def scale(self) -> float: ...


class AdapterKind(Protocol):
    """What adapters of equal modules, shapes and scales may share; hashed by identity."""

    @property
    def modules(self) -> Mapping[str, FactorShapes]: ...
    def __hash__(self) -> int: ...


Factor = tuple[str, str]
"""The full name of a module, and ``a`` or ``b``."""


class UnpackedAdapter(Protocol):
    """A checked adapter in memory, ``nbytes`` of it: its factors as rows of elements, and in their shapes."""

    @property
    def kind(self) -> AdapterKind: ...
    @property
    def nbytes(self) -> int: ...
    def flat(self) -> Mapping[Factor, torch.Tensor]: ...
    def modules(self) -> Mapping[str, LoraFactors]: ...


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
    unpacked_bytes: int = 0
    """Of the factors that it holds until ``read`` is called first; 0 where there is nothing left to pack."""


class Packer:
    """Makes images whose pages are packed when they are first read; adapters of one kind share a plan."""

    def __init__(self, config: DecoderConfig, page_elements: int, dtype: torch.dtype) -> None:
        self._config = config
        self._page_elements = page_elements
        self._dtype = dtype
        self._plan_of = lru_cache(maxsize=_PLANS)(self._plan)

    def image(self, adapter: UnpackedAdapter) -> AdapterImage:
        """``read`` may be called from any thread, packs once, and lets go of ``adapter``."""
        plan = self._plan_of(adapter.kind)
        pages = _Once(lambda: plan.pack(adapter.flat(), self._dtype))
        return AdapterImage(plan.layers, plan.rank, plan.num_pages, pages, unpacked_bytes=adapter.nbytes)

    def _plan(self, kind: AdapterKind) -> PagePlan:
        return plan_pages(kind.modules, self._config, self._page_elements)


class _Once:
    """What ``make`` returns, made at the first call; others that call meanwhile wait for it."""

    def __init__(self, make: Callable[[], HostPages]) -> None:
        self._make = make
        self._lock = Lock()

    def __call__(self) -> HostPages:
        with self._lock:
            made = self._make()
            self._make = lambda: made
            return made


@dataclass(frozen=True, slots=True, eq=False)
class PagePlan:
    """Where the factors of adapters of one kind lie in their pages."""

    layers: tuple[Mapping[Linear, LinearFactors], ...]
    order: tuple[tuple[Factor, ...], ...]
    """Per layer the factors as they follow each other."""
    lengths: tuple[int, ...]
    """Elements of each layer."""
    rank: int
    num_pages: int
    page_elements: int

    def pack(self, factors: Mapping[Factor, torch.Tensor], dtype: torch.dtype) -> HostPages:
        """The pages of one of them, in memory of their own, from the elements of its factors."""
        width = self.num_pages * self.page_elements
        rows = ADAPTER_MEMORY.allocate(len(self.layers) * width * dtype.itemsize).view(dtype)
        padding = torch.zeros(width, dtype=dtype)
        pieces: list[torch.Tensor] = []
        for order, length in zip(self.order, self.lengths, strict=True):
            pieces += [*(factors[factor] for factor in order), padding[length:]]
        torch.cat(pieces, out=rows)
        _transpose_b(rows.view(len(self.layers), width), self.layers)
        return HostPages(rows.view(len(self.layers), self.num_pages, self.page_elements).transpose(0, 1))


def plan_pages(
    modules: Mapping[str, FactorShapes],
    config: DecoderConfig,
    page_elements: int,
    linears: Mapping[Linear, FusedLinear] | None = None,
) -> PagePlan:
    """For pages of ``page_elements`` per layer; ``modules`` by their full names, any subset.

    ``linears`` say which outputs the factors work on; those of the config, unless the factors are a part of them.
    """
    linears = linears or config.linears
    placed = [_placed(modules, config, linears, layer) for layer in range(config.num_layers)]
    sizes = {(name, side): math.prod(getattr(m, side).shape) for name, m in modules.items() for side in "ab"}
    lengths = tuple(sum(sizes[factor] for factor in order) for _, order in placed)
    return PagePlan(
        layers=tuple(_directory(parts) for parts, _ in placed),
        order=tuple(order for _, order in placed),
        lengths=lengths,
        rank=max((m.a.shape[0] for m in modules.values()), default=0),
        num_pages=max(1, *(-(-length // page_elements) for length in lengths)),
        page_elements=page_elements,
    )


def pack_adapter(
    modules: Mapping[str, LoraFactors],
    config: DecoderConfig,
    page_elements: int,
    dtype: torch.dtype,
    linears: Mapping[Linear, FusedLinear] | None = None,
) -> AdapterImage:
    """The image with its pages, at once; arguments as of ``plan_pages``."""
    plan = plan_pages(modules, config, page_elements, linears)
    pages = plan.pack({(n, s): getattr(m, s).reshape(-1) for n, m in modules.items() for s in "ab"}, dtype)
    return AdapterImage(plan.layers, plan.rank, plan.num_pages, lambda: pages)


def _placed(
    modules: Mapping[str, FactorShapes], config: DecoderConfig, linears: Mapping[Linear, FusedLinear], layer: int
) -> tuple[tuple[_Placed, ...], tuple[Factor, ...]]:
    """What is there of a layer, and its factors in their order: A of all slices of a fused linear, then B."""
    placed: list[_Placed] = []
    order: list[Factor] = []
    for linear, fused in linears.items():
        names = [config.module_name(layer, part.module) for part in fused.slices]
        there = {i: name for i, name in enumerate(names) if name in modules}
        if there:
            factors = {i: modules[name] for i, name in there.items()}
            parts = tuple((i, f.a.shape[0], f.b.shape[1], f.scale) for i, f in factors.items())
            placed.append((linear, fused, parts))
            order += [(name, side) for side in "ab" for name in there.values()]
    return tuple(placed), tuple(order)


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
