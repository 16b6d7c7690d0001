"""Keys that want a pass: one pass per key at a time, duplicates folded, failures backed off.

Who adds: ``handlers`` (events), ``loop`` (resync, due times). Who takes: ``loop``'s workers. No I/O, no clock but the
injected one, not safe for threads.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass

FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 60.0


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """One BaseModel with all of its adapters; there may be no BaseModel of that name."""

    namespace: str
    base: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.base}"


class WorkQueue:
    """Due times by key; a key that is added while it is worked on gets another pass afterwards."""

    def __init__(self, clock: Callable[[], float], rng: random.Random | None = None) -> None:
        self._clock = clock
        self._rng = rng or random.Random()
        self._due: dict[Key, float] = {}
        self._heap: list[tuple[float, Key]] = []
        self._running: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._not_before: dict[Key, float] = {}
        """After a failure; events do not undo it, the API server may be in need of the pause."""

    def __len__(self) -> int:
        return len(self._due)

    def add(self, key: Key, delay_s: float = 0.0) -> None:
        """Wishes a pass within ``delay_s``, or after the back-off of a failure; an earlier wish stands."""
        due = max(self._clock() + delay_s, self._not_before.get(key, 0.0))
        if due < self._due.get(key, float("inf")):
            self._due[key] = due
            heapq.heappush(self._heap, (due, key))

    def take(self) -> Key | None:
        """A key that is due and not being worked on, or None."""
        held: list[tuple[float, Key]] = []
        found = None
        while self._heap and self._heap[0][0] <= self._clock():
            due, key = heapq.heappop(self._heap)
            if self._due.get(key) != due:
                continue  # superseded by an earlier wish
            if key in self._running:
                held.append((due, key))
                continue
            del self._due[key]
            self._running.add(key)
            found = key
            break
        for entry in held:
            heapq.heappush(self._heap, entry)
        return found

    def next_due_s(self) -> float | None:
        """Seconds until a key that nobody works on is due; None when there is none."""
        waiting = [due for key, due in self._due.items() if key not in self._running]
        return max(0.0, min(waiting) - self._clock()) if waiting else None

    def finish(self, key: Key, again_s: float | None) -> None:
        """The pass went well; the next one is due in ``again_s``, if given."""
        self._running.discard(key)
        self._failures.pop(key, None)
        self._not_before.pop(key, None)
        if again_s is not None:
            self.add(key, again_s)

    def fail(self, key: Key) -> float:
        """The pass failed: the key comes back after an exponential delay with full jitter, which is returned."""
        self._running.discard(key)
        count = self._failures.get(key, 0)
        self._failures[key] = count + 1
        limit = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(count, 16))
        delay = self._rng.uniform(limit / 2, limit)
        self._not_before[key] = self._clock() + delay
        self._due.pop(key, None)
        self.add(key, delay)
        return delay
