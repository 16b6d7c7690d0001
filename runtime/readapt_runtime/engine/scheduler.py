"""Who runs: a queue of waiting sequences, a list of running ones, and pages as the only currency.

An adapter's pages and those of a prompt are reserved at admission, those of the answer are taken as it grows: when
none can be had, the sequence that stands last is preempted and computes its tokens again later, from what the prefix
cache still has. A step takes one token of every decoding sequence, then stretches of prompts up to a budget.
"""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakSet

from readapt_runtime.engine.core import Request, RequestTooLarge, Row, Sequence, Variant
from readapt_runtime.engine.limits import EngineLimits
from readapt_runtime.engine.memory import Memory
from readapt_runtime.engine.pool import kv_pages
from readapt_runtime.engine.waiting import WaitingQueue


class Scheduler:
    """State is the two named queues and nothing else."""

    def __init__(self, memory: Memory, limits: EngineLimits, clock: Callable[[], float]) -> None:
        self._memory = memory
        self._limits = limits
        self._clock = clock
        # each running sequence may decode one token in every step
        self.max_running = min(limits.max_running, limits.max_batch_tokens)
        self._watermark = int(limits.watermark * memory.pool.num_pages)
        self.waiting = WaitingQueue()
        self.running: list[Sequence] = []
        self._preloaded: WeakSet[Variant] = WeakSet()
        self.preemptions = 0

    def check_fits(self, request: Request) -> None:
        """Raises RequestTooLarge when the request could not run even alone."""
        adapter = request.variant.image.num_pages if request.variant else 0
        wanted, there_are = kv_pages(request.max_length) + adapter, self._memory.pool.num_pages
        if wanted > there_are:
            raise RequestTooLarge(f"the request needs {wanted} pages of memory, there are {there_are}")

    def add(self, request: Request) -> None:
        """Queues the request; raises RequestTooLarge."""
        self.check_fits(request)
        self.waiting.add(Sequence(request, list(request.prompt)))

    def preload(self, variant: Variant, on: bool) -> None:
        """Brings the variant in while there is free room, whoever asks for it, and keeps it as long as possible."""
        self._memory.residency.preload(variant, on)
        if on:
            self._preloaded.add(variant)
            self.load_preloaded()
        else:
            self._preloaded.discard(variant)

    def fail_load(self, variant: Variant) -> None:
        """The variant cannot be read: nobody tries again unasked."""
        self._preloaded.discard(variant)

    def load_preloaded(self) -> None:
        """Into free pages only, down to the watermark: nothing has to go for what nobody waits for."""
        for variant in self._preloaded:
            if self._memory.pool.can_allocate(variant.image.num_pages + self._headroom + self._watermark):
                self._load(variant, set(), self._headroom)

    def forget(self, variant: Variant) -> None:
        """See ``Memory.forget``."""
        self._preloaded.discard(variant)
        self._memory.forget(variant)

    def admit_waiting(self) -> None:
        """Admits in turn; a sequence without pages or adapter is passed by others, for a while."""
        now = self._clock()
        ahead: set[Variant] = set()  # adapters that nobody behind may push out
        left = self._headroom
        for seq in self.waiting.first(self._limits.look_ahead):
            if seq.request.variant is not None:
                ahead.add(seq.request.variant)
                self._load(seq.request.variant, ahead, left)
            if self.can_admit(seq, ahead):
                self.admit(seq, ahead)
                continue
            left = self._headroom + self._watermark  # from here on nobody's turn has come
            if self._is_blocked(seq, ahead):
                seq.blocked_since = seq.blocked_since if seq.blocked_since is not None else now
                if now - seq.blocked_since > self._limits.patience_s:
                    return

    def can_admit(self, seq: Sequence, ahead: set[Variant]) -> bool:
        """Whether there is a running place, the adapter, and pages for what is known and a little of the answers."""
        return len(self.running) < self.max_running and self._memory.can_start(seq, ahead, self._headroom)

    def admit(self, seq: Sequence, ahead: set[Variant]) -> None:
        """Takes the pages; only after ``can_admit``."""
        if not seq.preemptions:
            self.waiting.charge_prompt(seq)
        self.waiting.remove(seq)
        self._memory.start(seq, ahead)
        seq.blocked_since = None
        self.running.append(seq)

    def schedule(self) -> list[Row]:
        """The rows of the next step; every decoding sequence that keeps its pages is among them."""
        rows: dict[Sequence, Row] = {}
        self.running.sort(key=_standing)
        decoding = [seq for seq in self.running if seq.decoding]
        prompts = [seq for seq in self.running if not seq.decoding]
        budget = self._limits.max_batch_tokens
        for seq in decoding:
            budget -= self._take(seq, 1, rows)
        if rows:
            budget = min(budget, self._limits.chunk_tokens)
        for seq in prompts:
            budget -= self._take(seq, seq.next_count(budget), rows)
        return list(rows.values())

    def _take(self, seq: Sequence, count: int, rows: dict[Sequence, Row]) -> int:
        """Adds a row, preempting who stands behind until there are pages for it; the tokens that it took."""
        if not count or seq.kv is None:
            return 0
        while not self._memory.can_extend(seq, seq.computed + count):
            last = self.running[-1]
            rows.pop(last, None)
            self.preempt(last)
            if last is seq:
                return 0
        self._memory.extend(seq, seq.computed + count)
        rows[seq] = Row(seq, seq.computed, count)
        return count

    def preempt(self, seq: Sequence) -> None:
        """Takes a running sequence's pages; it keeps its tokens and computes them again when it is its turn."""
        self.running.remove(seq)
        self._memory.stop(seq)
        seq.preemptions += 1
        self.preemptions += 1
        self.waiting.put_back(seq)

    def settle(self, row: Row) -> None:
        """The row was computed."""
        row.seq.computed += row.count
        self._memory.keep(row.seq)

    def retire(self, seq: Sequence) -> None:
        """Removes a sequence from either queue and gives its pages back."""
        if seq.kv is None:
            self.waiting.remove(seq)
        else:
            self.running.remove(seq)
            self._memory.stop(seq)

    @property
    def _headroom(self) -> int:
        """Pages that are left at admission for answers that grow: one for each that runs."""
        return len(self.running)

    def _is_blocked(self, seq: Sequence, ahead: set[Variant]) -> bool:
        """Whether pages are what is missing, not a running place or an adapter that is, or may soon be, loaded."""
        variant, residency = seq.request.variant, self._memory.residency
        if len(self.running) >= self.max_running:
            return False
        if variant is None or residency.is_resident(variant):
            return True
        return not residency.is_loading(variant) and not self._memory.can_load(variant, ahead, self._headroom)

    def _load(self, variant: Variant, ahead: set[Variant], left: int) -> None:
        """Begins to load an absent adapter, if there is room for it and ``left`` pages more."""
        residency = self._memory.residency
        if residency.is_resident(variant) or residency.is_loading(variant):
            return
        if residency.loading < self._limits.max_loading and self._memory.can_load(variant, ahead, left):
            self._memory.load(variant, ahead)


def _standing(seq: Sequence) -> tuple[int, int]:
    return seq.standing
