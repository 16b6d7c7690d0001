"""A small typed client of the Kubernetes API for tests; it shares nothing with the operator's.

Objects are plain dictionaries as the server sends them. Every call has a time-out; a status that is not 2xx raises
``KubeError`` with the server's own message, which is what tests compare.
"""

from __future__ import annotations

import base64
import json
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

Object = dict[str, Any]

_CORE = "/api/v1"
_PREFIXES = {
    "Namespace": (_CORE, "namespaces"),
    "Node": (_CORE, "nodes"),
    "Pod": (_CORE, "pods"),
    "ConfigMap": (_CORE, "configmaps"),
    "Secret": (_CORE, "secrets"),
    "Service": (_CORE, "services"),
    "ServiceAccount": (_CORE, "serviceaccounts"),
    "Event": (_CORE, "events"),
    "Job": ("/apis/batch/v1", "jobs"),
    "Deployment": ("/apis/apps/v1", "deployments"),
    "ReplicaSet": ("/apis/apps/v1", "replicasets"),
    "EndpointSlice": ("/apis/discovery.k8s.io/v1", "endpointslices"),
    "Lease": ("/apis/coordination.k8s.io/v1", "leases"),
    "Role": ("/apis/rbac.authorization.k8s.io/v1", "roles"),
    "RoleBinding": ("/apis/rbac.authorization.k8s.io/v1", "rolebindings"),
    "ClusterRole": ("/apis/rbac.authorization.k8s.io/v1", "clusterroles"),
    "ClusterRoleBinding": ("/apis/rbac.authorization.k8s.io/v1", "clusterrolebindings"),
    "CustomResourceDefinition": ("/apis/apiextensions.k8s.io/v1", "customresourcedefinitions"),
    "BaseModel": ("/apis/readapt.dev/v1alpha1", "basemodels"),
    "LoRAAdapter": ("/apis/readapt.dev/v1alpha1", "loraadapters"),
}
_CLUSTER_SCOPED = frozenset({"Namespace", "Node", "ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"})
_TIMEOUT = httpx.Timeout(30.0)
_TRIES_WHEN_BUSY = 10
_MERGE_PATCH = "application/merge-patch+json"
_APPLY_PATCH = "application/apply-patch+yaml"


class KubeError(Exception):
    """The server refused; ``message`` is its own."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message

    @property
    def may_pass(self) -> bool:
        """A server that has just started answers 5xx, and 403 until its RBAC rules are loaded."""
        return self.code >= 500 or self.code in (403, 429)


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a watch."""

    type: str
    """ADDED, MODIFIED or DELETED."""
    object: Object


def path_of(kind: str, namespace: str | None, name: str = "", subresource: str = "") -> str:
    """The URL path of a collection, an object or a subresource; no namespace: all namespaces."""
    prefix, plural = _PREFIXES[kind]
    scope = f"/namespaces/{namespace}" if namespace and kind not in _CLUSTER_SCOPED else ""
    return "/".join(part for part in (f"{prefix}{scope}", plural, name, subresource) if part)


class Kube:
    """One API server as one user; safe to share between threads."""

    def __init__(self, kubeconfig: Path) -> None:
        url, context, headers = _credentials(kubeconfig)
        self._http = httpx.Client(
            base_url=url, verify=context, headers=headers, timeout=_TIMEOUT, trust_env=False, limits=_LIMITS
        )

    def __enter__(self) -> Kube:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._http.close()

    def get(self, kind: str, name: str, namespace: str | None = None) -> Object | None:
        """The object, or None when there is none."""
        try:
            return self.request("GET", path_of(kind, namespace, name))
        except KubeError as error:
            if error.code == 404:
                return None
            raise

    def items(self, kind: str, namespace: str | None = None, selector: str = "") -> list[Object]:
        """The objects of a kind, in the server's order; a missing ``kind`` in items is filled in."""
        return self.list_with_version(kind, namespace, selector)[0]

    def list_with_version(
        self, kind: str, namespace: str | None = None, selector: str = ""
    ) -> tuple[list[Object], str]:
        """The objects and the resource version to watch from."""
        query = {"labelSelector": selector} if selector else {}
        answer = self.request("GET", path_of(kind, namespace), params=query)
        return [{"kind": kind, **item} for item in answer["items"]], answer["metadata"]["resourceVersion"]

    def create(self, document: Object, namespace: str | None = None, dry_run: bool = False) -> Object:
        """POST; raises KubeError 409 when the name is taken."""
        params = {"dryRun": "All"} if dry_run else {}
        return self.request("POST", path_of(document["kind"], namespace), json_body=document, params=params)

    def apply(self, document: Object, namespace: str | None = None) -> Object:
        """Server-side apply as the test's own field manager; conflicts are taken over."""
        return self.request(
            "PATCH",
            path_of(document["kind"], namespace, document["metadata"]["name"]),
            json_body=document,
            params={"fieldManager": "readapt-testing", "force": "true"},
            content_type=_APPLY_PATCH,
        )

    def replace(self, document: Object, namespace: str | None = None) -> Object:
        """PUT of a document that carries its resourceVersion."""
        path = path_of(document["kind"], namespace, document["metadata"]["name"])
        return self.request("PUT", path, json_body=document)

    def patch(self, kind: str, name: str, body: Object, namespace: str | None = None, subresource: str = "") -> Object:
        """Merge patch."""
        path = path_of(kind, namespace, name, subresource)
        return self.request("PATCH", path, json_body=body, content_type=_MERGE_PATCH)

    def delete(self, kind: str, name: str, namespace: str | None = None, options: Object | None = None) -> None:
        """Delete; an object that is gone already is fine."""
        try:
            self.request("DELETE", path_of(kind, namespace, name), json_body=options)
        except KubeError as error:
            if error.code != 404:
                raise

    def request(
        self,
        method: str,
        path: str,
        json_body: Object | None = None,
        params: dict[str, str] | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> Object:
        """Any request; the JSON object of the answer."""
        content = None if json_body is None else json.dumps(json_body).encode()
        headers = {"Accept": accept, **({"Content-Type": content_type} if content is not None else {})}
        for _ in range(_TRIES_WHEN_BUSY):
            response = self._http.request(method, path, content=content, params=params, headers=headers)
            if response.status_code != 429:
                break
            # The server asks to come back, as it does while it sets up the storage of a new resource.
            time.sleep(float(response.headers.get("Retry-After", "1")))
        if response.is_success:
            return dict(response.json())
        raise KubeError(response.status_code, _message(response))

    def watch(self, kind: str, namespace: str | None, version: str) -> Watch:
        """The changes after ``version``."""
        query = {"watch": "true", "resourceVersion": version, "allowWatchBookmarks": "true"}
        return Watch(self._http, path_of(kind, namespace), query)

    def wait(
        self,
        kind: str,
        name: str,
        namespace: str | None,
        until: Callable[[Object | None], bool],
        timeout_s: float,
        what: str,
    ) -> Object | None:
        """Follow one object until ``until`` holds for it (None: it does not exist) and return it.

        Raises TimeoutError that says ``what`` was awaited and shows the object's last state.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            items, version = self.list_with_version(kind, namespace)
            last = next((i for i in items if i["metadata"]["name"] == name), None)
            if until(last):
                return last
            with self.watch(kind, namespace, version) as changes:
                for event in changes.until(deadline):
                    if event.object["metadata"]["name"] != name:
                        continue
                    last = None if event.type == "DELETED" else event.object
                    if until(last):
                        return last
            if time.monotonic() >= deadline:
                raise TimeoutError(f"{kind} {name}: not {what} after {timeout_s:.0f} s; it is {_brief(last)}")


class Watch:
    """A stream of events; ends when the server ends it, at a deadline, or by ``stop`` from another thread."""

    def __init__(self, http: httpx.Client, path: str, query: dict[str, str]) -> None:
        timeout = httpx.Timeout(30.0, read=None)
        request = http.build_request("GET", path, params=query, timeout=timeout)
        self._response = http.send(request, stream=True)
        self._socket: socket.socket = self._response.extensions["network_stream"].get_extra_info("socket")
        self._stopped = False
        if not self._response.is_success:
            self._response.read()
            self._response.close()
            raise KubeError(self._response.status_code, _message(self._response))

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()
        self._response.close()

    def stop(self) -> None:
        """End the stream; whoever reads it sees its end."""
        self._stopped = True
        try:
            # The plain socket's shutdown: SSLSocket's own would pull the TLS state from under the reader.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
        except OSError:
            return

    def __iter__(self) -> Iterator[Event]:
        try:
            for line in self._response.iter_lines():
                document = json.loads(line)
                if document["type"] == "ERROR":
                    raise KubeError(int(document["object"].get("code", 500)), document["object"].get("message", ""))
                if document["type"] != "BOOKMARK":
                    yield Event(document["type"], document["object"])
        except (httpx.TransportError, httpx.StreamError):
            return

    def until(self, deadline: float) -> Iterator[Event]:
        """Events before ``deadline`` (time.monotonic)."""
        timer = threading.Timer(max(0.0, deadline - time.monotonic()), self.stop)
        timer.start()
        try:
            yield from self
        finally:
            timer.cancel()
            timer.join()


_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=20)


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json().get("message", response.text))
    except ValueError:
        return response.text


def _brief(document: Object | None) -> str:
    if document is None:
        return "absent"
    return json.dumps({k: document.get(k) for k in ("spec", "status")}, indent=1, ensure_ascii=False)[-4000:]


def _credentials(kubeconfig: Path) -> tuple[str, ssl.SSLContext, dict[str, str]]:
    """Server, TLS context and headers of a self-contained kubeconfig written as JSON."""
    document = json.loads(kubeconfig.read_text())
    cluster, user = document["clusters"][0]["cluster"], document["users"][0]["user"]
    context = ssl.create_default_context(cadata=_decode(cluster["certificate-authority-data"]))
    if "client-key-data" in user:
        with tempfile.TemporaryDirectory() as folder:
            files = Path(folder, "crt"), Path(folder, "key")
            for file, field in zip(files, ("client-certificate-data", "client-key-data"), strict=True):
                file.write_text(_decode(user[field]))
            context.load_cert_chain(*files)
    headers = {"Authorization": f"Bearer {user['token']}"} if "token" in user else {}
    return cluster["server"], context, headers


def _decode(data: str) -> str:
    return base64.b64decode(data).decode()
