"""Reads of adapters that end in time, whatever the volume does: one that hangs fails, and only its thread stays.

In: what is to be read, under a name. Out: its result, or ReadHangs. A thread in a system call cannot be told to stop,
so nothing is read again that hangs, and their number is bounded; what they bring when they wake is dropped. Called
from any thread.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeVar

from readapt_api.contract import Digest
from readapt_api.errors import Transient
from readapt_runtime.daemon_threads import DaemonThreads
from readapt_runtime.server.registration import Registered, Source

MAX_STUCK = 64
_T = TypeVar("_T")


class ReadHangs(Transient):
    """The volume does not answer in time."""


class TimedReads:
    """One instance per process."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._threads = DaemonThreads()
        self._stuck: dict[Future[Any], str] = {}
        self._lock = Lock()

    @property
    def stuck(self) -> int:
        """Reads that passed the limit and have not ended yet."""
        with self._lock:
            return len(self._hanging())

    def read(self, name: str, work: Callable[[], _T]) -> _T:
        """The result of ``work``, whose errors pass; raises ReadHangs, at once where the last read still hangs."""
        with self._lock:
            hanging = self._hanging()
        if name in hanging.values():
            raise ReadHangs(f"{name}: an earlier read has hung for more than {self._limit_s:g} s")
        if len(hanging) >= MAX_STUCK:
            raise ReadHangs(f"{name}: not read, for {len(hanging)} other reads hang")
        future = self._threads.submit(work)
        if not wait([future], self._limit_s).done:
            with self._lock:
                self._stuck[future] = name
            raise ReadHangs(f"{name}: reading it has taken more than {self._limit_s:g} s")
        return future.result()

    def _hanging(self) -> dict[Future[Any], str]:
        """Without those that have ended; under the lock."""
        self._stuck = {future: name for future, name in self._stuck.items() if not future.done()}
        return self._stuck


@dataclass(frozen=True, slots=True)
class TimedSource:
    """A source (see ``Source``) whose reads end in time."""

    source: Source
    reads: TimedReads

    def load(self, digest: Digest) -> Registered:
        return self.reads.read(digest, lambda: self.source.load(digest))
