"""The port on a real API server: raw JSON through the official client's low level, in a bounded thread pool."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlencode

import urllib3
from kubernetes.client.exceptions import ApiException

from readapt_operator.kube.errors import AlreadyExists, NotFound, Unavailable, error_for
from readapt_operator.kube.resources import PODS, Doc, Resource, resource_of

_MERGE_PATCH = "application/merge-patch+json"
_PAGE = 500
_LOG_BYTES = 64 << 10
WriteGate = Callable[[], float]
"""Seconds that a write may take, given the lease; raises NotLeader."""


class KubeClient:
    """Implements ``port.Kube``."""

    def __init__(self, api: Any, *, timeout_s: float, threads: int = 8, gate: WriteGate | None = None) -> None:
        self._api = api
        self._timeout_s = timeout_s
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="kube")
        self._gate = gate

    def gated(self, gate: WriteGate) -> KubeClient:
        """The same connection, with every write behind ``gate``."""
        twin = KubeClient.__new__(KubeClient)
        twin._api, twin._timeout_s, twin._pool, twin._gate = self._api, self._timeout_s, self._pool, gate
        return twin

    def close(self) -> None:
        """Lets calls under way end; nothing can be asked afterwards."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._api.close()

    async def get(self, resource: Resource, namespace: str, name: str) -> Doc | None:
        try:
            return await self._call("GET", resource.path(namespace, name))
        except NotFound:
            return None

    async def list(self, resource: Resource, namespace: str | None, labels: str = "") -> list[Doc]:
        query = {"limit": str(_PAGE), **({"labelSelector": labels} if labels else {})}
        items: list[Doc] = []
        while True:
            page = await self._call("GET", f"{resource.path(namespace)}?{urlencode(query)}")
            # The server leaves them out of the items of built-in kinds.
            items += [{"apiVersion": resource.api_version, "kind": resource.kind, **item} for item in page["items"]]
            following = page["metadata"].get("continue")
            if not following:
                return items
            query["continue"] = following

    async def log(self, namespace: str, pod: str, container: str, lines: int) -> str:
        query = {"container": container, "tailLines": str(lines), "limitBytes": str(_LOG_BYTES)}
        path = f"{PODS.path(namespace, pod, 'log')}?{urlencode(query)}"
        run = asyncio.get_running_loop().run_in_executor
        data = await run(self._pool, self._ask, "GET", path, None, "application/json", None, "*/*")
        return data.decode(errors="replace")

    async def create(self, body: Doc) -> Doc:
        return await self._write("POST", resource_of(body).path(body["metadata"]["namespace"]), body)

    async def apply(self, body: Doc) -> Doc:
        return await self._write("PATCH", _path(body), body, _MERGE_PATCH)

    async def patch_status(self, body: Doc) -> Doc:
        return await self._write("PATCH", _path(body, "status"), body, _MERGE_PATCH)

    async def replace(self, body: Doc) -> Doc:
        return await self._call("PUT", _path(body), body)

    async def delete(self, body: Doc) -> None:
        meta = body["metadata"]
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
            "preconditions": {"uid": meta["uid"], "resourceVersion": meta["resourceVersion"]},
        }
        try:
            await self._write("DELETE", _path(body), options)
        except NotFound:
            return

    async def event(self, body: Doc) -> None:
        try:
            await self._write("POST", resource_of(body).path(body["metadata"]["namespace"]), body)
        except AlreadyExists:
            return

    async def _write(self, method: str, path: str, body: Doc, content_type: str = "application/json") -> Doc:
        return await self._call(method, path, body, content_type, self._gate)

    async def _call(
        self,
        method: str,
        path: str,
        body: Doc | None = None,
        content_type: str = "application/json",
        gate: WriteGate | None = None,
    ) -> Doc:
        run = asyncio.get_running_loop().run_in_executor
        data = await run(self._pool, self._ask, method, path, body, content_type, gate)
        try:
            document: Doc = json.loads(data)
        except ValueError as error:
            raise Unavailable(f"{method} {path.partition('?')[0]}: the answer is not JSON") from error
        return document

    def _ask(
        self,
        method: str,
        path: str,
        body: Doc | None,
        content_type: str,
        gate: WriteGate | None,
        accept: str = "application/json",
    ) -> bytes:
        what = f"{method} {path.partition('?')[0]}"
        headers = {"Accept": accept, "Content-Type": content_type}
        try:
            request = self._api.param_serialize(
                method, path, header_params=headers, body=body, auth_settings=["BearerToken"]
            )
            # Asked here, not when queued: a thread may have been long in coming.
            timeout_s = min(gate(), self._timeout_s) if gate else self._timeout_s
            answer = self._api.call_api(*request, _request_timeout=timeout_s)
            data: bytes = answer.read()
        except (urllib3.exceptions.HTTPError, ApiException, OSError) as error:
            raise Unavailable(f"{what}: {error}") from error
        if not 200 <= answer.status < 300:
            raise error_for(answer.status, data, what)
        return data


def _path(body: Doc, subresource: str = "") -> str:
    meta = body["metadata"]
    return resource_of(body).path(meta["namespace"], meta["name"], subresource)
