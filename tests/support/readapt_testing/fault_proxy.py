"""An HTTP proxy in front of kube-apiserver that can stop a client at an exact write.

    client --http--> FaultProxy --https--> kube-apiserver

Everything passes unchanged, watches included, with the client's own credentials. A ``Trigger`` recognises one write;
when the server's answer to it has arrived, ``on_fire`` runs and the answer is dropped: the write happened and the
client never learns of it.
"""

from __future__ import annotations

import http.client
import json
import re
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "host", "upgrade"})
_CHUNK = 65536
Body = dict[str, Any]


@dataclass(slots=True)
class Trigger:
    """One write: method, a pattern that the whole path (without query) matches, a test of the body, and which one."""

    method: str
    path: str
    when: Callable[[Body], bool] = lambda body: True
    nth: int = 1
    fired: threading.Event = field(default_factory=threading.Event)
    _seen: int = 0

    def matches(self, method: str, path: str, body: bytes) -> bool:
        """Counts matching writes; True for the nth, once."""
        if self.fired.is_set() or method != self.method or not re.fullmatch(self.path, path):
            return False
        if not self.when(json.loads(body) if body else {}):
            return False
        self._seen += 1
        return self._seen == self.nth


@dataclass(frozen=True, slots=True)
class Write:
    """A write that passed, with the server's answer."""

    method: str
    path: str
    code: int


class FaultProxy:
    """Listens on a free loopback port from ``with`` on."""

    def __init__(self, upstream: str, ca_file: Path) -> None:
        self._upstream = urlsplit(upstream)
        self._context = ssl.create_default_context(cafile=str(ca_file))
        self._trigger: Trigger | None = None
        self._on_fire: Callable[[], None] = lambda: None
        self.writes: list[Write] = []
        """Every write since the start, in the order of the answers."""
        self._server = _Server(("127.0.0.1", 0), self)

    def __enter__(self) -> FaultProxy:
        self._thread = threading.Thread(target=self._server.serve_forever, name="fault proxy", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=30)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def arm(self, trigger: Trigger, on_fire: Callable[[], None]) -> None:
        """From now on; one trigger at a time."""
        self._trigger, self._on_fire = trigger, on_fire

    def connect(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(
            self._upstream.hostname or "", self._upstream.port, context=self._context, timeout=900
        )

    def answered(self, method: str, path: str, body: bytes, code: int) -> bool:
        """Records a write; True when its answer must be dropped because the trigger fired."""
        if method == "GET":
            return False
        self.writes.append(Write(method, path, code))
        trigger = self._trigger
        if trigger is None or code >= 300 or not trigger.matches(method, path, body):
            return False
        self._on_fire()
        trigger.fired.set()
        return True


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], proxy: FaultProxy) -> None:
        super().__init__(address, _Handler)
        self.proxy = proxy

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed leaves broken connections; that is what this proxy is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP_BY_HOP}
        upstream = self.server.proxy.connect()
        try:
            upstream.request(self.command, self.path, body=body or None, headers=headers)
            answer = upstream.getresponse()
            path = urlsplit(self.path).path
            if self.server.proxy.answered(self.command, path, body, answer.status):
                self.close_connection = True
                return
            self._answer(answer)
        except (OSError, http.client.HTTPException):
            self.close_connection = True
        finally:
            upstream.close()

    def _answer(self, answer: http.client.HTTPResponse) -> None:
        self.send_response_only(answer.status)
        self._send_headers(answer.headers)
        length = answer.getheader("Content-Length")
        if length is not None:
            self.send_header("Content-Length", length)
            self.end_headers()
            self.wfile.write(answer.read())
            return
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while chunk := answer.read1(_CHUNK):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def _send_headers(self, headers: http.client.HTTPMessage) -> None:
        for name, value in headers.items():
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass_on

    def log_message(self, format: str, *args: object) -> None:
        """Quiet; the API server has an audit log of its own."""
