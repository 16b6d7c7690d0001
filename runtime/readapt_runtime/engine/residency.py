"""Which variants are in the pool now: acquired by sequences, evicted when nobody uses them and pages are wanted.

In: variants (host images). Out: ``ResidentAdapter`` for the batch. Runs on the engine's thread only.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from weakref import WeakSet

import torch

from readapt_runtime.engine.core import ResidentAdapter, Variant
from readapt_runtime.engine.pool import Entry, PageKind, PageOrder, PagePool


@dataclass(eq=False, slots=True)
class _Slot:
    adapter: ResidentAdapter
    users: int = 0


class Residency:
    """Reference counts and least-recently-used eviction of adapter pages."""

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._slots: OrderedDict[Variant, _Slot] = OrderedDict()  # least recently used first
        self._forgotten: WeakSet[Variant] = WeakSet()  # also of variants whose sequences are still waiting

    def pages_wanted(self, variant: Variant | None) -> int:
        """Pages that ``acquire`` would take: none for the base and for what is resident."""
        return 0 if variant is None or variant in self._slots else variant.image.num_pages

    def reclaimable(self, spare: Variant | None) -> int:
        """Pages that eviction could free without touching ``spare``."""
        return sum(len(s.adapter.entry.pages) for v, s in self._slots.items() if s.users == 0 and v is not spare)

    def evict(self, pages: int, spare: Variant | None) -> None:
        """Frees unused adapters, least recently used first, until ``pages`` are free or nothing is left to evict."""
        for variant in [v for v, s in self._slots.items() if s.users == 0 and v is not spare]:
            if self._pool.can_allocate(pages):
                return
            self._drop(variant)

    def acquire(self, variant: Variant) -> ResidentAdapter:
        """Copies the image into the pool unless it is there; each call needs one ``release``."""
        slot = self._slots.get(variant)
        if slot is None:
            slot = self._slots[variant] = _Slot(self._load(variant))
        slot.users += 1
        self._slots.move_to_end(variant)
        return slot.adapter

    def release(self, variant: Variant) -> None:
        slot = self._slots[variant]
        slot.users -= 1
        if slot.users == 0 and variant in self._forgotten:
            self._drop(variant)

    def forget(self, variant: Variant) -> None:
        """The variant will not be asked for again: its pages go now, or with the last sequence that uses it."""
        self._forgotten.add(variant)
        slot = self._slots.get(variant)
        if slot is not None and slot.users == 0:
            self._drop(variant)

    def is_resident(self, variant: Variant) -> bool:
        return variant in self._slots

    def clear(self) -> None:
        """Frees every unused adapter."""
        for variant in [v for v, s in self._slots.items() if s.users == 0]:
            self._drop(variant)

    def _load(self, variant: Variant) -> ResidentAdapter:
        image = variant.image
        entry = self._pool.allocate(PageKind.ADAPTER, image.num_pages)
        for index, page in enumerate(entry.pages):
            self._pool.pages[page].copy_(image.pages[index])
        return ResidentAdapter(variant, entry, self._views(entry))

    def _views(self, entry: Entry) -> tuple[torch.Tensor, ...] | None:
        if self._pool.order is not PageOrder.LAYER_MAJOR or not entry.consecutive:
            return None
        return tuple(self._pool.flat(entry, layer) for layer in range(self._pool.layout.num_layers))

    def _drop(self, variant: Variant) -> None:
        self._pool.release(self._slots.pop(variant).adapter.entry)
