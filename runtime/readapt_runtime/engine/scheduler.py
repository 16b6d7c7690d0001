"""Who runs: a queue of waiting sequences, a list of running ones, and pages as the only currency.

Admission is first come, first served and reserves pages for the longest answer, so a running sequence never waits
for memory. A step takes one token of every decoding sequence, then prompt tokens up to the budget.
"""

from __future__ import annotations

from collections import deque

from readapt_runtime.engine.core import Request, RequestTooLarge, Row, Sequence
from readapt_runtime.engine.pool import PageKind, PagePool
from readapt_runtime.engine.residency import Residency


class Scheduler:
    """State is the two named queues and nothing else."""

    def __init__(self, pool: PagePool, residency: Residency, max_batch_tokens: int, max_running: int) -> None:
        self._pool = pool
        self._residency = residency
        self._max_batch_tokens = max_batch_tokens
        # each running sequence may decode one token in every step
        self._max_running = min(max_running, max_batch_tokens)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def check_fits(self, request: Request) -> None:
        """Raises RequestTooLarge when the request could not run even alone."""
        adapter = request.variant.image.num_pages if request.variant else 0
        wanted = Sequence(request, []).pages_wanted + adapter
        if wanted > self._pool.num_pages:
            raise RequestTooLarge(f"the request needs {wanted} pages of memory, there are {self._pool.num_pages}")

    def add(self, request: Request) -> None:
        """Queues the request; raises RequestTooLarge."""
        self.check_fits(request)
        self.waiting.append(Sequence(request, list(request.prompt)))

    def can_admit(self, seq: Sequence) -> bool:
        """Whether a running place, and pages for the longest answer and the adapter, can be had now."""
        variant = seq.request.variant
        wanted = seq.pages_wanted + self._residency.pages_wanted(variant)
        has_pages = wanted <= self._pool.num_free + self._residency.reclaimable(spare=variant)
        return has_pages and len(self.running) < self._max_running

    def admit(self, seq: Sequence) -> None:
        """Takes the pages, evicting unused adapters where needed; only after ``can_admit``."""
        variant = seq.request.variant
        self._residency.evict(seq.pages_wanted + self._residency.pages_wanted(variant), spare=variant)
        if variant is not None:
            seq.adapter = self._residency.acquire(variant)
        seq.kv = self._pool.allocate(PageKind.KV, seq.pages_wanted)
        self.running.append(seq)

    def admit_waiting(self) -> None:
        while self.waiting and self.can_admit(self.waiting[0]):
            self.admit(self.waiting.popleft())

    def schedule(self) -> list[Row]:
        """The rows of the next step; every decoding sequence is among them."""
        budget = self._max_batch_tokens
        rows: list[Row] = []
        for seq in sorted(self.running, key=lambda s: not s.decoding):
            if count := seq.next_count(budget):
                rows.append(Row(seq, seq.computed, count))
                budget -= count
        return rows

    def retire(self, seq: Sequence) -> None:
        """Removes a sequence from either queue and gives its pages back."""
        if seq.kv is None:
            self.waiting.remove(seq)
            return
        self.running.remove(seq)
        self._pool.release(seq.kv)
        if seq.adapter is not None:
            self._residency.release(seq.adapter.variant)
