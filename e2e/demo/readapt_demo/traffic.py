"""Clients that keep asking during an upgrade: no retries, every answer kept for the judge."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx

_TIMEOUT = httpx.Timeout(120.0, connect=10.0)
MAX_TOKENS = 12


@dataclass(frozen=True, slots=True)
class Answer:
    """One request and what came back."""

    model: str
    prompt: str
    connection: str
    """``kept`` or ``new``."""
    status: int
    """HTTP status; 0 when there was no answer."""
    text: str = ""
    revision: str = ""
    adapter: str = ""
    error: str = ""
    seconds: float = 0.0

    @property
    def failed(self) -> bool:
        return self.status != 200


CONNECTIONS = ("kept", "new")
"""Of the two clients: one keeps its own alive, one opens one for every request."""


@dataclass(slots=True)
class Traffic:
    """Two clients over (model, prompt) pairs in turn: one on a kept-alive connection, one on new connections."""

    url: str
    questions: Sequence[tuple[str, str]]
    pause_s: float = 1.0
    """Between two requests of one client: the clients share the machine's two cores with the repair."""
    answers: list[Answer] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(len(CONNECTIONS)))
    _clients: list[Future[None]] = field(default_factory=list)

    def __enter__(self) -> Traffic:
        self._clients = [self._pool.submit(ask) for ask in (self._ask_kept, self._ask_new)]
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Raises what ended a client before its time, unless something else is on its way."""
        self._stop.set()
        self._pool.shutdown()
        for client in self._clients:
            if kind is None:
                client.result()

    def _ask_kept(self) -> None:
        # One connection, reopened only when the server closed it after an answer (Connection: close), as clients do.
        limits = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=60.0)
        with httpx.Client(base_url=self.url, timeout=_TIMEOUT, limits=limits) as client:
            for model, prompt in itertools.cycle(self.questions):
                self.answers.append(ask(client, model, prompt, "kept"))
                if self._stop.wait(self.pause_s):
                    return

    def _ask_new(self) -> None:
        for model, prompt in itertools.cycle(reversed(self.questions)):
            with httpx.Client(base_url=self.url, timeout=_TIMEOUT, headers={"Connection": "close"}) as client:
                self.answers.append(ask(client, model, prompt, "new"))
            if self._stop.wait(self.pause_s):
                return


def ask(client: httpx.Client, model: str, prompt: str, connection: str = "new") -> Answer:
    """One greedy completion."""
    body = {"model": model, "prompt": prompt, "max_tokens": MAX_TOKENS, "temperature": 0}
    started = time.monotonic()
    try:
        response = client.post("/v1/completions", json=body)
        text = response.json()["choices"][0]["text"] if response.status_code == 200 else ""
        error = "" if response.status_code == 200 else response.text[:300]
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as problem:
        return Answer(model, prompt, connection, 0, error=f"{type(problem).__name__}: {problem}")
    return Answer(
        model,
        prompt,
        connection,
        response.status_code,
        text=text,
        revision=response.headers.get("x-readapt-set", ""),
        adapter=response.headers.get("x-readapt-adapter", ""),
        error=error,
        seconds=time.monotonic() - started,
    )
