"""Clients under load that never retry: one keeps its connection, one opens a new one for every request."""

from __future__ import annotations

import http.client
import itertools
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

from readapt_api.serving import HEADER_ADAPTER, HEADER_SET
from readapt_testing.service_dialer import ServiceDialer

MAX_TOKENS = 6
_TIMEOUT_S = 60.0
_PAUSE_S = 0.2
"""Between two requests: the machine has other things to do, and idle connections are part of the test."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request came to; ``problem`` is empty when it was answered."""

    model: str
    prompt: str
    text: str = ""
    set: str = ""
    adapter: str = ""
    """``name@digest``; empty for the base."""
    problem: str = ""


class Client:
    """Asks every model every prompt in turn, one request at a time, until ``with`` ends."""

    def __init__(self, dialer: ServiceDialer, models: Sequence[str], prompts: Sequence[str], keep_alive: bool) -> None:
        self._dialer, self._keep_alive = dialer, keep_alive
        self._questions = itertools.cycle([(m, p) for p in prompts for m in models])
        self._connection: http.client.HTTPConnection | None = None
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._answers: list[Answer] = []
        self.connections = 0
        """How many it has opened."""

    def __enter__(self) -> Client:
        self._thread = threading.Thread(target=self._run, name="client", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(timeout=2 * _TIMEOUT_S)

    def answers(self) -> list[Answer]:
        with self._changed:
            return list(self._answers)

    def wait_for(self, count: int, timeout_s: float = 60.0) -> None:
        """Returns after ``count`` more answers."""
        with self._changed:
            goal = len(self._answers) + count
            if not self._changed.wait_for(lambda: len(self._answers) >= goal, timeout_s):
                raise TimeoutError(f"{len(self._answers)} answers, {goal} wanted")

    def _run(self) -> None:
        while not self._stop.is_set():
            model, prompt = next(self._questions)
            answer = self._ask(model, prompt)
            with self._changed:
                self._answers.append(answer)
                self._changed.notify_all()
            self._stop.wait(_PAUSE_S)
        self._close()

    def _ask(self, model: str, prompt: str) -> Answer:
        try:
            return self._request(model, prompt)
        except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
            self._close()
            return Answer(model, prompt, problem=repr(error))

    def _request(self, model: str, prompt: str) -> Answer:
        connection = self._connected()
        body = {"model": model, "prompt": prompt, "max_tokens": MAX_TOKENS, "temperature": 0}
        headers = {"Content-Type": "application/json"} | ({} if self._keep_alive else {"Connection": "close"})
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        response = connection.getresponse()
        content = response.read()
        if response.will_close or not self._keep_alive:
            self._close()
        if response.status != http.client.OK:
            return Answer(model, prompt, problem=f"{response.status} {content[:200]!r}")
        text = json.loads(content)["choices"][0]["text"]
        seen = {name: response.getheader(name) or "" for name in (HEADER_SET, HEADER_ADAPTER)}
        return Answer(model, prompt, text, seen[HEADER_SET], seen[HEADER_ADAPTER])

    def _connected(self) -> http.client.HTTPConnection:
        if self._connection is None:
            endpoint = self._dialer.dial()
            self._connection = http.client.HTTPConnection(endpoint.address, endpoint.port, timeout=_TIMEOUT_S)
            self.connections += 1
        return self._connection

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
