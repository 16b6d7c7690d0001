"""Plays kube-proxy for clients of a test: from a Service to one of its ready addresses."""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass
from types import TracebackType

from readapt_testing.informer import Informer
from readapt_testing.kube import Event, Kube, Object

_SERVICE = "kubernetes.io/service-name"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A backend of a Service."""

    address: str
    port: int


class NoEndpoint(ConnectionError):
    """The Service has no ready backend: a real client would be refused."""


class ServiceDialer:
    """Follows the EndpointSlices of one Service, as the real controllers write them; round robin."""

    def __init__(self, kube: Kube, namespace: str, service: str) -> None:
        self._service = service
        self._slices: dict[str, Object] = {}
        self._lock = threading.Lock()
        self._turn = itertools.count()
        self._informer = Informer(kube, "EndpointSlice", namespace, self._take)

    def __enter__(self) -> ServiceDialer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._informer.close()

    def endpoints(self) -> list[Endpoint]:
        """Ready backends; with none ready, those that still serve while they end, as kube-proxy does."""
        with self._lock:
            slices = list(self._slices.values())
        listed = [(e, s["ports"][0]["port"]) for s in slices for e in s.get("endpoints") or []]
        for wanted in ("ready", "serving"):
            chosen = [(e, port) for e, port in listed if e.get("conditions", {}).get(wanted)]
            if chosen:
                return sorted((Endpoint(e["addresses"][0], port) for e, port in chosen), key=lambda e: e.address)
        return []

    def dial(self) -> Endpoint:
        """The next backend; raises NoEndpoint."""
        endpoints = self.endpoints()
        if not endpoints:
            raise NoEndpoint(f"Service {self._service} has no ready endpoint")
        return endpoints[next(self._turn) % len(endpoints)]

    def url(self) -> str:
        """``http://address:port`` of the next backend."""
        endpoint = self.dial()
        return f"http://{endpoint.address}:{endpoint.port}"

    def _take(self, event: Event) -> None:
        labels = event.object["metadata"].get("labels", {})
        if labels.get(_SERVICE) != self._service:
            return
        with self._lock:
            name = event.object["metadata"]["name"]
            if event.type == "DELETED":
                self._slices.pop(name, None)
            else:
                self._slices[name] = event.object
