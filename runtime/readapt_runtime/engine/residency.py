"""Which variants are in the pool: loaded beside the steps, used by sequences, dropped when their pages are worth more.

    absent --load--> loading --settle--> resident (used | idle) --evict--> absent

In: variants, whose images are read from memory or disk. Out: ``ResidentAdapter`` for the batch. Reading and copying
run in the executor; everything else runs on the engine's thread, which never waits for a load. An adapter that is
being loaded cannot be evicted, so a load always has its pages to itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from weakref import WeakSet

import torch

from readapt_api.errors import ReadaptError
from readapt_runtime.engine.core import ResidentAdapter, Variant
from readapt_runtime.engine.pool import Entry, PageKind, PageOrder, PagePool, PoolCorrupt
from readapt_runtime.engine.worth import Costs, Evictions, Heat


@dataclass(eq=False, slots=True)
class Slot:
    """The pages of one variant."""

    adapter: ResidentAdapter
    seconds_per_page: float
    users: int = 0
    heat: Heat = field(default_factory=Heat)
    load: Future[float] | None = None
    """None once the pages are filled."""

    @property
    def variant(self) -> Variant:
        return self.adapter.variant

    @property
    def num_pages(self) -> int:
        return len(self.adapter.entry.pages)

    @property
    def is_idle(self) -> bool:
        return self.load is None and self.users == 0


class Residency:
    """See the module; whose cached blocks are still there is asked by ``has_blocks``."""

    def __init__(
        self,
        pool: PagePool,
        evictions: Evictions,
        costs: Costs,
        clock: Callable[[], float],
        has_blocks: Callable[[Variant], bool],
        executor: Executor | None,
        wake: Callable[[], None],
    ) -> None:
        """Without an executor ``load`` copies at once; else ``wake`` is called, on another thread, when one ends."""
        self._pool = pool
        self._evictions = evictions
        self._costs = costs
        self._clock = clock
        self._has_blocks = has_blocks
        self._executor = executor
        self._wake = wake
        self._slots: dict[Variant, Slot] = {}
        self._preloaded: WeakSet[Variant] = WeakSet()
        self.idle_pages = 0
        """Of resident variants that no sequence uses."""
        self.loads = 0
        self.evicted = 0

    def preload(self, variant: Variant, on: bool) -> None:
        """Once in the pool it goes last, after everything that is not preloaded."""
        (self._preloaded.add if on else self._preloaded.discard)(variant)
        slot = self._slots.get(variant)
        if slot is not None:
            slot.seconds_per_page = self._cost(variant)
            self.offer(variant)

    def is_resident(self, variant: Variant) -> bool:
        slot = self._slots.get(variant)
        return slot is not None and slot.load is None

    def is_loading(self, variant: Variant) -> bool:
        slot = self._slots.get(variant)
        return slot is not None and slot.load is not None

    @property
    def loading(self) -> int:
        return sum(slot.load is not None for slot in self._slots.values())

    @property
    def resident(self) -> int:
        return len(self._slots)

    def idle_pages_of(self, variant: Variant) -> int:
        slot = self._slots.get(variant)
        return slot.num_pages if slot is not None and slot.is_idle else 0

    def load(self, variant: Variant) -> None:
        """Begins to bring an absent variant into free pages, for ``settle`` to take over; raises PoolExhausted."""
        entry = self._pool.allocate(PageKind.ADAPTER, variant.image.num_pages)
        slot = Slot(ResidentAdapter(variant, entry, self._views(entry)), self._cost(variant))
        self._slots[variant] = slot
        self._evictions.touch(slot)
        self.loads += 1
        load = slot.load = _started(self._executor, lambda: self._bring(slot.adapter))
        if load.done() and load.exception() is None:
            self._arrive(slot, load)
        else:
            load.add_done_callback(lambda _: self._wake())

    def _bring(self, adapter: ResidentAdapter) -> float:
        """Run beside the engine's thread, which looks at the adapter when this has ended; the seconds it took."""
        started = self._clock()
        pages = adapter.variant.image.read()
        self._pool.write(adapter.entry, pages.here)
        adapter.shares = pages.shares
        return self._clock() - started

    def settle(self) -> tuple[list[Variant], list[tuple[Variant, ReadaptError]]]:
        """Takes over the loads that ended: those that are resident, and those that failed and are absent again."""
        ended: list[Variant] = []
        failed: list[tuple[Variant, ReadaptError]] = []
        for slot, load in [(slot, slot.load) for slot in self._slots.values() if slot.load is not None]:
            if not load.done():
                continue
            self._arrive(slot, load)
            error = load.exception()
            if error is None:
                ended.append(slot.variant)
                continue
            self.evict(slot)
            if not isinstance(error, ReadaptError):
                raise error
            failed.append((slot.variant, error))
        return ended, failed

    def acquire(self, variant: Variant) -> ResidentAdapter:
        """A resident variant for one more sequence; each call needs one ``release``."""
        slot = self._slots[variant]
        if slot.is_idle:
            self.idle_pages -= slot.num_pages
            self._evictions.withdraw(slot)
        slot.users += 1
        self._evictions.touch(slot)
        return slot.adapter

    def release(self, variant: Variant) -> None:
        slot = self._slots[variant]
        slot.users -= 1
        if slot.is_idle:
            self.idle_pages += slot.num_pages
            self.offer(variant)

    def offer(self, variant: Variant) -> None:
        """Lets an idle variant go when pages are wanted, once no cached block depends on it."""
        slot = self._slots.get(variant)
        if slot is not None and slot.is_idle and not self._has_blocks(variant):
            self._evictions.offer(slot)

    def is_idle(self, variant: Variant) -> bool:
        slot = self._slots.get(variant)
        return slot is not None and slot.is_idle

    def evict(self, slot: Slot) -> None:
        """Frees an idle variant without cached blocks."""
        if not slot.is_idle or self._has_blocks(slot.variant):
            raise PoolCorrupt(f"{slot.variant.name} is in use and was evicted")
        self._evictions.withdraw(slot)
        del self._slots[slot.variant]
        self.idle_pages -= slot.num_pages
        self.evicted += 1
        self._pool.release(slot.adapter.entry)

    def drop(self, variant: Variant) -> None:
        """``evict`` by variant."""
        self.evict(self._slots[variant])

    def _cost(self, variant: Variant) -> float:
        return math.inf if variant in self._preloaded else self._costs.adapter_s

    def _arrive(self, slot: Slot, load: Future[float]) -> None:
        slot.load = None
        if load.exception() is None:
            self._costs.note_load(slot.num_pages, load.result())
        self.idle_pages += slot.num_pages
        self.offer(slot.variant)

    def _views(self, entry: Entry) -> tuple[torch.Tensor, ...] | None:
        if self._pool.order is not PageOrder.LAYER_MAJOR or not entry.consecutive:
            return None
        return tuple(self._pool.flat(entry, layer) for layer in range(self._pool.layout.num_layers))


def _started(executor: Executor | None, copy: Callable[[], float]) -> Future[float]:
    if executor is not None:
        return executor.submit(copy)
    future: Future[float] = Future()
    try:
        seconds = copy()
    except ReadaptError as error:
        future.set_exception(error)
    else:
        future.set_result(seconds)
    return future
