"""Which pages are free, as runs of neighbours in bins by length: taking, giving back and merging take constant time.

Single pages come from the shortest runs and from their low end, long runs are cut from the high end, so that holes
are filled first and adapters find neighbours. Nothing here touches the memory itself.
"""

from __future__ import annotations

from collections.abc import Iterator

_LOOKED_AT = 8
"""Runs of the tightest bin that are tried before a longer one is cut."""


class FreePages:
    """Page numbers ``0 .. count - 1``, all free at first."""

    def __init__(self, count: int) -> None:
        self._stop: dict[int, int] = {}  # first page of a run -> one past its last
        self._start: dict[int, int] = {}  # the other way round
        self._bins: list[list[int]] = [[] for _ in range(count.bit_length() + 1)]  # bin b: 2**(b-1) .. 2**b - 1
        self._place: dict[int, int] = {}  # first page of a run -> where it stands in its bin
        self.count = 0
        if count:
            self._add(0, count)

    def take_run(self, count: int) -> list[int] | None:
        """``count`` neighbours from the tightest bin that has them; None when there is no such run."""
        start = self._fitting(count)
        if start is None:
            return None
        stop = self._remove(start)
        if stop - start > count:
            self._add(start, stop - count)
        return list(range(stop - count, stop))

    def take(self, count: int) -> list[int]:
        """Any ``count`` pages, from the shortest runs; the caller has looked at ``count`` first."""
        taken: list[int] = []
        while len(taken) < count:
            start = next(filter(None, self._bins))[-1]
            stop = self._remove(start)
            end = min(stop, start + count - len(taken))
            taken += range(start, end)
            if end < stop:
                self._add(end, stop)
        return taken

    def put(self, page: int) -> None:
        """Gives one page back and merges it with its neighbours."""
        start, stop = page, page + 1
        if (before := self._start.get(page)) is not None:
            self._remove(before)
            start = before
        if page + 1 in self._stop:
            stop = self._remove(page + 1)
        self._add(start, stop)

    def __iter__(self) -> Iterator[int]:
        for start, stop in sorted(self._stop.items()):
            yield from range(start, stop)

    @property
    def runs(self) -> list[range]:
        """In order; two of them never touch."""
        return [range(start, stop) for start, stop in sorted(self._stop.items())]

    def _fitting(self, count: int) -> int | None:
        own, *longer = self._bins[count.bit_length() :] or [[]]
        for start in own[-_LOOKED_AT:]:
            if self._stop[start] - start >= count:
                return start
        return next((runs[-1] for runs in longer if runs), None)

    def _add(self, start: int, stop: int) -> None:
        self._stop[start] = stop
        self._start[stop] = start
        runs = self._bins[(stop - start).bit_length()]
        self._place[start] = len(runs)
        runs.append(start)
        self.count += stop - start

    def _remove(self, start: int) -> int:
        stop = self._stop.pop(start)
        del self._start[stop]
        runs = self._bins[(stop - start).bit_length()]
        place, last = self._place.pop(start), runs.pop()
        if last != start:
            runs[place], self._place[last] = last, place
        self.count -= stop - start
        return stop
