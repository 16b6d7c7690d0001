"""One kind of one namespace, listed and then watched in a thread; changes go to a callback in order."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http import HTTPStatus
from types import TracebackType

import httpx

from readapt_testing.kube import Event, Kube, KubeError, Object, Watch


class Informer:
    """Calls ``on_event`` for what exists at the start (as ADDED) and for every later change, from one thread.

    A watch that ends is resumed from the last seen version, so nothing is missed in between. When the API server
    is away it is asked again every half second until it is back or ``close`` is called. A server that has restarted
    no longer knows old versions (410): then everything is listed anew and what differs is told, as every client does.
    """

    def __init__(self, kube: Kube, kind: str, namespace: str, on_event: Callable[[Event], None]) -> None:
        self._kube, self._kind, self._namespace, self._on_event = kube, kind, namespace, on_event
        self._closed = threading.Event()
        self._watch: Watch | None = None
        self.failure: BaseException | None = None
        """Why the thread died; tests that rely on completeness check it."""
        self._version, self._expired = "", False
        self._known: dict[str, Object] = {}
        """By uid, as last seen."""
        self._list()
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
            if self._expired:
                self._list()
            with self._kube.watch(self._kind, self._namespace, self._version) as watch:
                self._watch = watch
                for event in watch:
                    if self._closed.is_set():
                        return
                    self._take(event)
        except KubeError as error:
            self._expired = error.code == HTTPStatus.GONE
            if not (self._expired or error.may_pass):
                raise
            self._closed.wait(0.5)
        except (OSError, httpx.TransportError):
            self._closed.wait(0.5)

    def _list(self) -> None:
        """Tells how what exists now differs from what is known."""
        items, self._version = self._kube.list_with_version(self._kind, self._namespace)
        uids = {item["metadata"]["uid"] for item in items}
        for gone in [found for uid, found in self._known.items() if uid not in uids]:
            self._tell(Event("DELETED", gone))
        for item in items:
            known = self._known.get(item["metadata"]["uid"])
            if known is None or known["metadata"]["resourceVersion"] != item["metadata"]["resourceVersion"]:
                self._tell(Event("ADDED" if known is None else "MODIFIED", item))
        self._expired = False

    def _take(self, event: Event) -> None:
        self._version = event.object["metadata"]["resourceVersion"]
        self._tell(event)

    def _tell(self, event: Event) -> None:
        uid = event.object["metadata"]["uid"]
        if event.type == "DELETED":
            self._known.pop(uid, None)
        else:
            self._known[uid] = event.object
        self._on_event(event)
