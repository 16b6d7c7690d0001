"""What is kept when pages run out: every idle entry of the pool has a worth per page, and the least goes first.

The worth of a page is how soon its content will be asked for, times the seconds it takes to have it again: to compute
keys and values, or to copy an adapter. How soon is estimated from the past uses, each of which counts half as much
after ``half_life_s``. All entries age alike, so their order never changes with time and a heap of constant keys is
enough: the logarithm of sum(2 ** (t / half life)) over the uses t, plus the logarithm of the seconds. This merges the
cost models of FastLibra (arXiv:2505.03756) and Chameleon (MICRO 2025) for one pool.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Protocol

_KEPT = 0.8


@dataclass(slots=True)
class Costs:
    """Seconds to have a page's content again: guesses at first, then what was measured last."""

    kv_s: float = 0.008
    """16 tokens; at first at 2,000 prompt tokens a second."""
    adapter_s: float = 0.0005
    """One page of an adapter, read and copied: a moving average over the loads, wherever their images were."""
    half_life_s: float = 60.0
    """A use counts half as much after this time."""

    def note_kv(self, seconds: float) -> None:
        """What a page of keys and values takes now; 0 says nothing."""
        self.kv_s = seconds or self.kv_s

    def note_load(self, pages: int, seconds: float) -> None:
        """An adapter of ``pages`` came within ``seconds``; 0 says nothing."""
        if pages and seconds > 0:
            self.adapter_s = _KEPT * self.adapter_s + (1 - _KEPT) * seconds / pages


class Heat:
    """How hot an entry is: the base-2 logarithm of its uses, weighted by how recent they are."""

    __slots__ = ("log2",)

    def __init__(self) -> None:
        self.log2 = -math.inf

    def touch(self, now: float, half_life_s: float) -> None:
        use, past = now / half_life_s, self.log2
        top = max(use, past)
        self.log2 = top + math.log2(2 ** (use - top) + 2 ** (past - top))


class Evictable(Protocol):
    """Something in the pool that can be dropped while nobody uses it."""

    @property
    def heat(self) -> Heat: ...
    @property
    def seconds_per_page(self) -> float: ...


class Evictions:
    """The idle entries that may be dropped now, least worth first."""

    def __init__(self, clock: Callable[[], float], costs: Costs) -> None:
        self._clock = clock
        self._half_life_s = costs.half_life_s
        self._heap: list[tuple[float, int, Evictable]] = []
        self._idle: dict[Evictable, int] = {}  # -> the serial of its valid heap item
        self._serials = count()

    def touch(self, item: Evictable) -> None:
        """Notes a use of an item that is not offered now."""
        item.heat.touch(self._clock(), self._half_life_s)

    def offer(self, item: Evictable) -> None:
        """The item may be dropped from now on."""
        serial = self._idle[item] = next(self._serials)
        heapq.heappush(self._heap, (_worth(item), serial, item))
        if len(self._heap) > 64 + 2 * len(self._idle):
            self._heap = [entry for entry in self._heap if self._is_valid(entry)]
            heapq.heapify(self._heap)

    def withdraw(self, item: Evictable) -> None:
        """The item is used again, or gone; fine when it was not offered."""
        self._idle.pop(item, None)

    def pop(self, spare: Callable[[Evictable], bool]) -> Evictable | None:
        """Withdraws and returns the item that is worth least, ``spare`` ones apart."""
        spared: list[tuple[float, int, Evictable]] = []
        found = None
        while self._heap and found is None:
            entry = heapq.heappop(self._heap)
            if not self._is_valid(entry):
                continue
            if spare(entry[2]):
                spared.append(entry)
            else:
                found = entry[2]
                self.withdraw(found)
        for entry in spared:
            heapq.heappush(self._heap, entry)
        return found

    def __len__(self) -> int:
        return len(self._idle)

    def _is_valid(self, entry: tuple[float, int, Evictable]) -> bool:
        return self._idle.get(entry[2]) == entry[1]


def _worth(item: Evictable) -> float:
    return item.heat.log2 + math.log2(item.seconds_per_page)
