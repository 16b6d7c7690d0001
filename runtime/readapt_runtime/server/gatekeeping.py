"""What happens to every answer of the serving port before and after its endpoint."""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from readapt_api.serving import HEADER_SET
from readapt_runtime.server.api_keys import ApiKeys
from readapt_runtime.server.problems import HeadersTooLarge, Unauthorized
from readapt_runtime.server.readiness import Readiness


class StampAnswers:
    """The revision on every answer, and ``Connection: close`` once this pod is to lose its connections."""

    def __init__(self, app: ASGIApp, revision: str, readiness: Readiness) -> None:
        self._app = app
        self._revision = revision
        self._readiness = readiness

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def stamped(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers[HEADER_SET] = self._revision
                if self._readiness.closing:
                    headers["connection"] = "close"
            await send(message)

        await self._app(scope, receive, stamped if scope["type"] == "http" else send)


class LimitHeaders:
    """431 for headers over the limit; h11 bounds only those that have not arrived whole."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and sum(len(k) + len(v) + 4 for k, v in scope["headers"]) > self._max_bytes:
            problem = HeadersTooLarge(f"the headers are larger than {self._max_bytes} bytes")
            problem.headers["connection"] = "close"
            await problem.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)


class RequireKey:
    """An API key, as ``Authorization: Bearer``, on everything below ``/v1``."""

    def __init__(self, app: ASGIApp, keys: ApiKeys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/v1/"):
            scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not self._keys.accept(given.strip().encode("latin-1")):
                problem = Unauthorized("a valid API key is needed")
                await problem.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)
