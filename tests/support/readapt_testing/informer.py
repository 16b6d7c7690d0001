"""One kind of one namespace, listed and then watched in a thread; changes go to a callback in order."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

import httpx

from readapt_testing.kube import Event, Kube, KubeError, Watch


class Informer:
    """Calls ``on_event`` for what exists at the start (as ADDED) and for every later change, from one thread.

    A watch that ends is resumed from the last seen version, so nothing is missed in between. When the API server
    is away it is asked again every half second until it is back or ``close`` is called.
    """

    def __init__(self, kube: Kube, kind: str, namespace: str, on_event: Callable[[Event], None]) -> None:
        self._kube, self._kind, self._namespace, self._on_event = kube, kind, namespace, on_event
        self._closed = threading.Event()
        self._watch: Watch | None = None
        self.failure: BaseException | None = None
        """Why the thread died; tests that rely on completeness check it."""
        items, self._version = kube.list_with_version(kind, namespace)
        for item in items:
            on_event(Event("ADDED", item))
        self._thread = threading.Thread(target=self._run, name=f"watch {kind} {namespace}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Informer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the thread; no callback runs afterwards."""
        self._closed.set()
        if self._watch is not None:
            self._watch.stop()
        self._thread.join(timeout=30)

    def _run(self) -> None:
        try:
            while not self._closed.is_set():
                self._follow()
        except BaseException as error:
            self.failure = error
            raise

    def _follow(self) -> None:
        try:
            watch = self._kube.watch(self._kind, self._namespace, self._version)
        except (OSError, KubeError, httpx.TransportError) as error:
            if isinstance(error, KubeError) and error.code == 410:
                raise
            self._closed.wait(0.5)
            return
        with watch:
            self._watch = watch
            for event in watch:
                if self._closed.is_set():
                    return
                self._version = event.object["metadata"]["resourceVersion"]
                self._on_event(event)
