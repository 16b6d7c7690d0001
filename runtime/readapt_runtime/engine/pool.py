"""The page pool: KV blocks and adapter weights as entries of one allocation.

In: sizes from the config. Out: entries (lists of page indices) for the scheduler and the residency, and typed views
for the backends. One page holds, for every layer, either 16 tokens of K and V or a stretch of an adapter's rank rows.
The free list lives on the host; nothing here waits for a device but the thread that fills an adapter's pages.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

import torch

from readapt_api.errors import Terminal, Transient
from readapt_kernels.cpu.arena import Arena
from readapt_runtime.engine.free_pages import FreePages
from readapt_runtime.model.accelerator import Accelerator, Mark, accelerator_of
from readapt_runtime.model.config import DecoderConfig

BLOCK_TOKENS = 16
_STAGED_PAGES = 16
"""What scattered pages pass through on their way to a GPU: 32 MiB for Llama-3.1-8B, beside the pool."""


class PoolTooSmall(Terminal):
    """The configured memory does not hold even one page per layer, or not the thing that was asked for."""


class PoolExhausted(Transient):
    """Not enough free pages now; nothing was allocated."""


class PoolCorrupt(RuntimeError):
    """The conservation law is broken: a bug."""


class PageKind(StrEnum):
    KV = "kv"
    ADAPTER = "adapter"


class PageOrder(StrEnum):
    """Which index is the slow one: a page's layers lie together (GPU copies), or a layer's pages (CPU views).

    So it says whose pages they are, too: Triton's kernels work on the first, the others on the second.
    """

    PAGE_MAJOR = "page-major"
    LAYER_MAJOR = "layer-major"


@dataclass(frozen=True, slots=True)
class PageLayout:
    """The shape of a page: ``elements`` per layer, keys and then values when it holds KV."""

    num_layers: int
    num_kv_heads: int
    head_dim: int

    @classmethod
    def of(cls, config: DecoderConfig) -> PageLayout:
        return cls(config.num_layers, config.num_kv_heads, config.head_dim)

    @property
    def elements(self) -> int:
        return 2 * BLOCK_TOKENS * self.num_kv_heads * self.head_dim

    def page_bytes(self, dtype: torch.dtype) -> int:
        return self.num_layers * self.elements * dtype.itemsize


@dataclass(eq=False, slots=True)
class Entry:
    """Pages that belong together; owned by whoever allocated them until ``release``."""

    kind: PageKind
    pages: tuple[int, ...]
    since: Mark | None = None
    """What was launched before may still use the pages; None where they are written in the order of launches."""

    @property
    def consecutive(self) -> bool:
        return all(b == a + 1 for a, b in pairwise(self.pages))


class PagePool:
    """``pages`` is the typed view ``[num_pages, num_layers, elements]`` of the one allocation, in either order."""

    def __init__(
        self,
        layout: PageLayout,
        memory_bytes: int,
        dtype: torch.dtype,
        device: torch.device,
        order: PageOrder | None = None,
        accelerator: Accelerator | None = None,
    ) -> None:
        self.layout = layout
        self.accelerator = accelerator or accelerator_of(device)
        self.dtype = dtype
        self.device = device
        self.order = order or (PageOrder.PAGE_MAJOR if device.type == "cuda" else PageOrder.LAYER_MAJOR)
        self.num_pages = memory_bytes // layout.page_bytes(dtype)
        if self.num_pages < 1:
            raise PoolTooSmall(f"{memory_bytes} bytes hold no page of {layout.page_bytes(dtype)} bytes")
        self._bytes = _memory(self.num_pages * layout.page_bytes(dtype), device)
        self.pages = self._view()
        self._staging: torch.Tensor | None = None
        if self.order is PageOrder.PAGE_MAJOR:
            self._staging = torch.empty_like(self.pages[:_STAGED_PAGES])
        self._free = FreePages(self.num_pages)
        self._entries: set[Entry] = set()
        self._used = dict.fromkeys(PageKind, 0)

    def _view(self) -> torch.Tensor:
        typed = self._bytes.view(self.dtype)
        if self.order is PageOrder.PAGE_MAJOR:
            return typed.view(self.num_pages, self.layout.num_layers, self.layout.elements)
        return typed.view(self.layout.num_layers, self.num_pages, self.layout.elements).transpose(0, 1)

    @property
    def num_free(self) -> int:
        return self._free.count

    def pages_used(self, kind: PageKind) -> int:
        return self._used[kind]

    def can_allocate(self, count: int) -> bool:
        return count <= self._free.count

    def allocate(self, kind: PageKind, count: int) -> Entry:
        """``count`` pages, neighbours where an adapter finds a run; raises PoolExhausted and changes nothing otherwise.

        What the pages held before is still in them: whoever reads a block stops at its last written token.
        """
        if not self.can_allocate(count):
            raise PoolExhausted(f"{count} pages wanted, {self.num_free} free")
        run = self._free.take_run(count) if kind is PageKind.ADAPTER else None
        since = self.accelerator.mark() if kind is PageKind.ADAPTER else None  # keys and values are written by steps
        entry = Entry(kind, tuple(self._free.take(count) if run is None else run), since)
        self._entries.add(entry)
        self._used[kind] += count
        return entry

    def release(self, entry: Entry) -> None:
        """Gives the pages back; an entry is released once."""
        if entry not in self._entries:
            raise PoolCorrupt(f"released twice or never allocated: {entry}")
        self._entries.remove(entry)
        self._used[entry.kind] -= len(entry.pages)
        for page in entry.pages:
            self._free.put(page)

    def kv(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of the keys and of the values of a layer, ``[num_pages, block tokens, kv heads, head dim]``.

        In memory a block is ``[tokens, kv heads, dim]`` for GPUs; for CPUs keys are ``[kv heads, dim, tokens]`` and
        values ``[kv heads, tokens, dim]``, so that both products of attention run along contiguous lanes.
        """
        heads, dim = self.layout.num_kv_heads, self.layout.head_dim
        keys, values = self.pages[:, layer].view(self.num_pages, 2, -1).unbind(1)
        if self.order is PageOrder.PAGE_MAJOR:
            shape = (self.num_pages, BLOCK_TOKENS, heads, dim)
            return keys.view(shape), values.view(shape)
        return (
            keys.view(self.num_pages, heads, dim, BLOCK_TOKENS).permute(0, 3, 1, 2),
            values.view(self.num_pages, heads, BLOCK_TOKENS, dim).transpose(1, 2),
        )

    def flat(self, entry: Entry, layer: int) -> torch.Tensor:
        """``[pages * elements]`` of an entry in one layer: a view when its pages are neighbours, else a copy."""
        if self.order is PageOrder.LAYER_MAJOR and entry.consecutive:
            first = entry.pages[0]
            return self.pages[first : first + len(entry.pages), layer].view(-1)
        return self.pages[list(entry.pages), layer].reshape(-1)

    def write(self, entry: Entry, pages: torch.Tensor) -> None:
        """Copies host pages ``[len(entry.pages), num_layers, elements]`` into the entry's; from any thread.

        The calling thread waits until they are there, and steps go on meanwhile: the copies begin when those that
        were launched before ``allocate`` are over. An entry that was not allocated here is filled in the order of
        launches. Page-locked pages that lie as the pool's do are copied by the GPU alone.
        """
        if entry.since is None:
            self._copy(entry, pages)
        else:
            self.accelerator.aside(entry.since, lambda: self._copy(entry, pages)).wait()

    def _copy(self, entry: Entry, pages: torch.Tensor) -> None:
        first = entry.pages[0]
        if entry.consecutive:
            self.pages[first : first + len(entry.pages)].copy_(pages, non_blocking=True)
        elif self._staging is not None:
            self._scatter(entry.pages, pages, self._staging)
        else:
            for page, content in zip(entry.pages, pages, strict=True):
                self.pages[page].copy_(content)

    def _scatter(self, numbers: tuple[int, ...], pages: torch.Tensor, staging: torch.Tensor) -> None:
        """Two launches for a stretch of pages, not one for each."""
        places = self.accelerator.indices(numbers)
        for here, some in zip(torch.split(places, len(staging)), torch.split(pages, len(staging)), strict=True):
            staged = staging[: len(some)]
            staged.copy_(some, non_blocking=True)
            self.pages.index_copy_(0, here, staged)

    def check(self) -> None:
        """Free + KV + adapters = total, and no page has two owners; raises PoolCorrupt."""
        owned = [page for entry in self._entries for page in entry.pages]
        if sorted([*owned, *self._free]) != list(range(self.num_pages)):
            raise PoolCorrupt(f"{self.num_free} free + {len(owned)} owned pages do not make up {self.num_pages}")
        if sum(self._used.values()) != len(owned):
            raise PoolCorrupt(f"{self._used} pages are counted as used, {len(owned)} are")
        runs = self._free.runs
        if any(a.stop >= b.start for a, b in pairwise(runs)):
            raise PoolCorrupt("free runs that touch were not merged")


def _memory(size: int, device: torch.device) -> torch.Tensor:
    """uint8 ``[size]``; on a CPU nothing is taken before it is touched."""
    if device.type == "cpu":
        return Arena().take(size, torch.uint8)
    return torch.empty(size, dtype=torch.uint8, device=device)


def kv_pages(num_tokens: int) -> int:
    """Pages for the keys and values of ``num_tokens``."""
    return -(-num_tokens // BLOCK_TOKENS)
