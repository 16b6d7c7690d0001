"""Counts what was created and deleted, from watches of the real API server."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from readapt_testing.informer import Informer
from readapt_testing.kube import Event, Kube, Object

RECORDED = ("BaseModel", "LoRAAdapter", "Job", "ConfigMap", "Deployment", "Service")
"""What users or the operator create; pods and replica sets are other controllers' work."""
_NOT_OURS = frozenset({"kube-root-ca.crt"})


@dataclass(frozen=True, slots=True)
class Key:
    """An object by name, whatever its uid."""

    kind: str
    name: str


class Recorder:
    """Every change of the recorded kinds in one namespace since it was made.

    Start it before the first object is made. ``check`` raises when a watch broke, since a count from an incomplete
    record proves nothing.
    """

    def __init__(self, kube: Kube, namespace: str, kinds: tuple[str, ...] = RECORDED) -> None:
        self._changed = threading.Condition()
        self._events: list[tuple[str, Event]] = []
        self._uids: dict[Key, set[str]] = {}
        self._deleted: Counter[Key] = Counter()
        self._live: dict[Key, Object] = {}
        self._informers = [Informer(kube, kind, namespace, self._taker(kind)) for kind in kinds]

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for informer in self._informers:
            informer.close()

    def check(self) -> None:
        """Raises when a watch died."""
        for informer in self._informers:
            if informer.failure is not None:
                raise AssertionError("the record is incomplete") from informer.failure

    def creations(self, kind: str) -> dict[str, int]:
        """Name to how many different objects (uids) of that name were created."""
        self.check()
        with self._changed:
            return {k.name: len(uids) for k, uids in sorted(self._uids.items(), key=str) if k.kind == kind}

    def deletions(self, kind: str) -> dict[str, int]:
        """Name to how many times an object of that name was deleted."""
        self.check()
        with self._changed:
            return {k.name: n for k, n in sorted(self._deleted.items(), key=str) if k.kind == kind}

    def live(self, kind: str) -> dict[str, Object]:
        """The objects that exist now, as last seen."""
        self.check()
        with self._changed:
            return {k.name: o for k, o in self._live.items() if k.kind == kind}

    def history(self, kind: str, name: str) -> list[Object]:
        """Every state that the object was seen in, in order."""
        self.check()
        with self._changed:
            return [e.object for k, e in self._events if k == kind and e.object["metadata"]["name"] == name]

    def changes(self) -> int:
        """How many events there were so far."""
        with self._changed:
            return len(self._events)

    def wait(self, until: Callable[[Recorder], bool], timeout_s: float, what: str) -> None:
        """Return when ``until`` holds; it is asked after every event. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while True:
            with self._changed:
                seen = len(self._events)
            if until(self):
                return
            with self._changed:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"not {what} after {timeout_s:.0f} s; {self._summary()}")
                if len(self._events) == seen:
                    self._changed.wait(left)

    def quiet(self, seconds: float, timeout_s: float) -> None:
        """Return once no event has come for ``seconds``; raises TimeoutError when they never stop."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                seen = len(self._events)
                if not self._changed.wait_for(lambda seen=seen: len(self._events) > seen, seconds):  # type: ignore[misc]
                    return
                if time.monotonic() > deadline:
                    raise TimeoutError(f"still {self._events[-1][0]} events after {timeout_s:.0f} s")

    def _summary(self) -> str:
        return ", ".join(f"{k.kind} {k.name}: {len(u)} created" for k, u in sorted(self._uids.items(), key=str))

    def _taker(self, kind: str) -> Callable[[Event], None]:
        def take(event: Event) -> None:
            key = Key(kind, event.object["metadata"]["name"])
            if key.name in _NOT_OURS:
                return
            with self._changed:
                self._events.append((kind, event))
                self._uids.setdefault(key, set()).add(event.object["metadata"]["uid"])
                if event.type == "DELETED":
                    self._deleted[key] += 1
                    self._live.pop(key, None)
                else:
                    self._live[key] = event.object
                self._changed.notify_all()

        return take
