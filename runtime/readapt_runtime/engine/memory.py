"""Everything in the pool as one memory: what a sequence needs, what can be dropped for it, and what is worth keeping.

In: sequences that start, grow and stop, variants that are wanted. Out: block tables and resident adapters. Cached
blocks of an adapter depend on it: they go before it does, and with it when it is forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from concurrent.futures import Executor
from dataclasses import replace
from weakref import WeakSet

from readapt_api.errors import ReadaptError
from readapt_runtime.engine.core import Block, BlockTable, Sequence, Variant
from readapt_runtime.engine.pool import BLOCK_TOKENS, PagePool, PoolExhausted, kv_pages
from readapt_runtime.engine.prefix import PrefixCache
from readapt_runtime.engine.residency import Residency, Slot
from readapt_runtime.engine.worth import Costs, Evictable, Evictions


class Memory:
    """Asked first (``can_…``), then told; not thread-safe."""

    def __init__(
        self,
        pool: PagePool,
        costs: Costs,
        clock: Callable[[], float],
        executor: Executor | None = None,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self.pool = pool
        self.costs = replace(costs)
        self._evictions = Evictions(clock, self.costs)
        self.prefixes = PrefixCache(pool, self._evictions, self.costs)
        has_blocks = self.prefixes.cached
        self.residency = Residency(
            pool, self._evictions, self.costs, clock, lambda v: has_blocks(v) > 0, executor, wake
        )
        self._forgotten: WeakSet[Variant] = WeakSet()  # also of variants whose sequences are still waiting

    def can_start(self, seq: Sequence, spare: Collection[Variant], headroom: int) -> bool:
        """Whether the adapter is here, and pages for all known tokens, with ``headroom`` left for others' answers."""
        variant = seq.request.variant
        if variant is not None and not self.residency.is_resident(variant):
            return False
        known = self._known(seq)
        idle = sum(block.users == 0 for block in known)
        wanted = kv_pages(len(seq.tokens)) - len(known) + headroom
        own = () if variant is None else (variant,)
        return wanted <= self._available({*spare, *own}) - idle

    def start(self, seq: Sequence, spare: Collection[Variant]) -> None:
        """Gives blocks for all known tokens, cached ones where there are some; only after ``can_start``."""
        request, known = seq.request, self._known(seq)
        self.prefixes.use(known)
        seq.kv = BlockTable(known, [block.page for block in known], len(known))
        seq.computed = len(known) * BLOCK_TOKENS
        if request.variant is not None:
            seq.adapter = self.residency.acquire(request.variant)
        self._grow(seq.kv, kv_pages(len(seq.tokens)), spare)

    def can_extend(self, seq: Sequence, stop: int) -> bool:
        """Whether there are, or could be, pages for the tokens up to ``stop``."""
        missing = self._missing(seq, stop)
        return missing <= 0 or missing <= self._available(())

    def extend(self, seq: Sequence, stop: int) -> None:
        """Gives the blocks that are missing; only after ``can_extend``."""
        if seq.kv is not None and self._missing(seq, stop) > 0:
            self._grow(seq.kv, kv_pages(stop), ())

    def _missing(self, seq: Sequence, stop: int) -> int:
        return kv_pages(stop) - (len(seq.kv.blocks) if seq.kv else 0)

    def stop(self, seq: Sequence) -> None:
        """Takes everything back; what was cached stays until its pages are wanted."""
        if seq.kv is None:
            return
        self.prefixes.release(seq.kv.blocks)
        seq.kv, seq.computed = None, 0
        if seq.adapter is not None:
            variant, seq.adapter = seq.adapter.variant, None
            self.residency.release(variant)
            self._drop_forgotten(variant)

    def keep(self, seq: Sequence) -> None:
        """Caches the blocks that were completed by the last step."""
        table, request = seq.kv, seq.request
        complete = seq.computed // BLOCK_TOKENS
        if table is None or complete <= table.num_cached or not table.extends_cache:
            return
        if request.variant in self._forgotten:
            return
        for index in range(table.num_cached, complete):
            before = table.blocks[index - 1] if index else None
            tokens = seq.tokens[index * BLOCK_TOKENS : (index + 1) * BLOCK_TOKENS]
            if not self.prefixes.insert(table.blocks[index], before, request.variant, request.tenant, tokens):
                table.extends_cache = False
                return
            table.num_cached += 1

    def cached_after(self, seq: Sequence, after: Block | None, begin: int) -> list[Block]:
        """Cached blocks of a waiting sequence from token ``begin`` on, where its cached block ``after`` ends."""
        request = seq.request
        return self.prefixes.match(request.variant, request.tenant, seq.tokens, len(seq.tokens) - 1, after, begin)

    def can_load(self, variant: Variant, spare: Collection[Variant], headroom: int) -> bool:
        return variant.image.num_pages + headroom <= self._available(spare)

    def load(self, variant: Variant, spare: Collection[Variant]) -> None:
        """Begins to bring an absent variant in; only after ``can_load``."""
        self._make_room(variant.image.num_pages, spare)
        self.residency.load(variant)

    def settle_loads(self, wanted: Callable[[], Collection[Variant]]) -> list[tuple[Variant, ReadaptError]]:
        """See ``Residency.settle``; what was forgotten meanwhile goes, unless it is ``wanted`` by who waits."""
        ended, failed = self.residency.settle()
        if ended:
            for variant in set(ended) - set(wanted()):
                self._drop_forgotten(variant)
        return failed

    def forget(self, variant: Variant) -> None:
        """The variant will not be asked for again: its pages and blocks go now, or with the last that uses them."""
        self._forgotten.add(variant)
        self._drop_forgotten(variant)

    def clear(self) -> None:
        """Frees everything that no sequence uses."""
        while (item := self._evictions.pop(lambda _: False)) is not None:
            self._evict(item)

    def check(self) -> None:
        """The conservation laws; raises PoolCorrupt."""
        self.pool.check()
        self.prefixes.check()

    def _known(self, seq: Sequence) -> list[Block]:
        """Cached blocks that the sequence can begin with; its last token is always computed."""
        return self.cached_after(seq, None, 0)

    def _available(self, spare: Collection[Variant]) -> int:
        """Pages that are free or could be freed without touching the adapters in ``spare``."""
        spared = sum(self.residency.idle_pages_of(variant) for variant in spare)
        return self.pool.num_free + self.prefixes.idle + self.residency.idle_pages - spared

    def _grow(self, table: BlockTable, pages: int, spare: Collection[Variant]) -> None:
        self._make_room(pages - len(table.blocks), spare)
        while len(table.blocks) < pages:
            block = self.prefixes.new()
            table.blocks.append(block)
            table.pages.append(block.page)

    def _make_room(self, pages: int, spare: Collection[Variant]) -> None:
        while not self.pool.can_allocate(pages):
            item = self._evictions.pop(lambda item: isinstance(item, Slot) and item.variant in spare)
            if item is None:
                raise PoolExhausted(f"{pages} pages wanted, {self.pool.num_free} free, the rest is in use")
            self._evict(item)

    def _evict(self, item: Evictable) -> None:
        if isinstance(item, Slot):
            self.residency.evict(item)
        elif isinstance(item, Block):
            variant = item.root.variant if item.root else None
            self.prefixes.evict(item)
            if variant is not None:
                self.residency.offer(variant)

    def _drop_forgotten(self, variant: Variant) -> None:
        if variant in self._forgotten and self.residency.is_idle(variant):
            self.prefixes.drop(variant)
            self.residency.drop(variant)
