"""uvicorn with the bounds that it lacks: on the time to send a request and to take its answer, and on what waits to be
taken; and an exit that we steer.

uvicorn 0.54 waits for ever for a client that sends one header line a second, or that takes nothing of a stream, and
takes the process's signals.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from readapt_runtime.server.gatekeeping import LimitHeaders
from readapt_runtime.server.limits import Limits

CLOSE_GRACE_S = 5
SEND_BUFFER_BYTES = 128 << 10
"""Of a connection, in the kernel (which doubles it): by itself it lets a client that does not read have 4 MiB."""
_TIMED_OUT = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 where a request must be whole ``receive_s`` after its first byte.

    Who does not take what waits to be sent within ``stall_s`` is cut off. A connection on which nothing was ever sent
    closes after ``keep_alive_s``; uvicorn times only those after an answer.
    """

    limits: Limits
    _deadline: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self._deadline = self.loop.call_later(self.limits.keep_alive_s, self.transport.close)
        self._receiving = False

    def data_received(self, data: bytes) -> None:
        if not self._receiving:
            self._receiving = True
            self._restart(self.limits.receive_s)
        super().data_received(data)
        if self._received_whole():
            self._receiving = False
            self._stop()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        self._go_on()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """More waits to be sent than the transport likes to hold (64 KiB)."""
        super().pause_writing()
        self._stalled = self.loop.call_later(self.limits.stall_s, self.transport.abort)

    def resume_writing(self) -> None:
        self._go_on()
        super().resume_writing()

    def _go_on(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _received_whole(self) -> bool:
        if self.conn.their_state is h11.IDLE:
            return not self.conn.trailing_data[0]
        return self.conn.their_state is not h11.SEND_BODY

    def _restart(self, seconds: float) -> None:
        self._stop()
        self._deadline = self.loop.call_later(seconds, self._time_out)

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _time_out(self) -> None:
        if self.conn.our_state is h11.IDLE:
            self.transport.write(_TIMED_OUT)
        self.transport.close()


def bounded_protocol(limits: Limits) -> type[H11Protocol]:
    """The class with its limits: uvicorn makes the objects."""
    return type("BoundedProtocol", (BoundedProtocol,), {"limits": limits})


class Listener(uvicorn.Server):
    """One port; leaves signals to the process and ends when ``should_exit`` is set."""

    def __init__(self, app: ASGIApp, address: socket.socket, limits: Limits) -> None:
        super().__init__(
            uvicorn.Config(
                LimitHeaders(app, limits.max_header_bytes),
                http=bounded_protocol(limits),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=limits.max_connections,
                timeout_keep_alive=int(limits.keep_alive_s),
                timeout_graceful_shutdown=CLOSE_GRACE_S,
                h11_max_incomplete_event_size=limits.max_header_bytes,
            )
        )
        self._socket = address
        self.port: int = address.getsockname()[1]

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def run_until_exit(self) -> None:
        await self.serve([self._socket])

    @property
    def connections(self) -> int:
        """Open client connections."""
        return len(self.server_state.connections)


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes a free one. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.create_server((host, port), family=family, backlog=2048)
    # Connections inherit both. asyncio asks for the second only where a socket names its protocol, and this one does
    # not; without it a part of an answer waits up to 40 ms until the client has acknowledged the part before.
    made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made
