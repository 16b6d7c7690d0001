"""Work that stops when the client goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

_T = TypeVar("_T")


class ClientGone(Exception):
    """The connection closed before the answer was complete."""


async def unless_disconnected(request: Request, work: Awaitable[_T]) -> _T:
    """The result of ``work``; cancels it and raises ClientGone when the client disconnects first.

    Only after the body of the request was read.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        for future in (task, watch):
            future.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
    """Server-sent events; ``close`` runs when the stream ends, however it ends."""

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncIterator[str], headers: dict[str, str], close: Callable[[], Awaitable[None]]
    ) -> None:
        super().__init__(events, headers={"cache-control": "no-cache", **headers})
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._close()
