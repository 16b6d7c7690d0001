"""The serving process killed (SIGKILL) under load, at chosen moments of its work.

Promise: a client that was being answered gets the complete answer, an explicit error, or a closed connection; what
is marked complete is complete. A process that starts after it serves.
"""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from readapt_testing.serving import serve_process
from readapt_testing.tiny_engine import Tiny

TOKENS = 24
MODELS = ("tiny", "r4", "r8", "r64", "r3")

# In the process that will be killed: NTH time that WHERE, a method, is called WHEN.
PRELUDE = """
import importlib, itertools, os, signal
module, owner, method = {where!r}.split(":")
target = getattr(importlib.import_module(module), owner)
original, count = getattr(target, method), itertools.count(1)

def deadly(self, *args, **kwargs):
    if ({when}) and next(count) == {nth}:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, *args, **kwargs)

setattr(target, method, deadly)
"""
POOL, DECODER = "readapt_runtime.engine.pool:PagePool:", "readapt_runtime.model.decoder:Decoder:"
PREFILL = "args[0].token_ids.numel() > len(args[0].rows)"
MOMENTS = {
    "at admission": (POOL + "allocate", "args[0].value == 'kv'", 9),
    "in mid-prefill": (DECODER + "forward", PREFILL, 6),
    "in mid-decode": (DECODER + "forward", f"not ({PREFILL})", 40),
    "at an adapter's load": (POOL + "allocate", "args[0].value == 'adapter'", 4),
    "at an eviction": (POOL + "release", "args[0].kind.value == 'adapter'", 6),
    "at shutdown": ("readapt_runtime.engine.thread:EngineThread:stop", "True", 1),
}


@dataclass
class Load:
    """Clients that ask until the server is gone, or so many times, half of them by streams."""

    address: str
    rounds: int = 60
    complete: list[tuple[str, str]] = field(default_factory=list)
    """(model, text) of what the server marked complete."""
    cut: int = 0
    errors: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, model: str, stream: bool) -> None:
        body = {"model": model, "prompt": "Hello", "max_tokens": TOKENS, "temperature": 0, "stream": stream}
        for _ in range(self.rounds):
            try:
                text = self._ask_stream(body) if stream else self._ask(body)
            except httpx.TransportError:
                with self._lock:
                    self.cut += 1
                return
            with self._lock:
                if text is None:
                    self.errors += 1
                else:
                    self.complete.append((model, text))

    def _ask(self, body: dict[str, Any]) -> str | None:
        answer = httpx.post(f"{self.address}/v1/completions", json=body, timeout=30)
        if answer.status_code == 200:
            text: str = answer.json()["choices"][0]["text"]
            return text
        assert "error" in answer.json()
        return None

    def _ask_stream(self, body: dict[str, Any]) -> str | None:
        text, done = "", False
        with httpx.stream("POST", f"{self.address}/v1/completions", json=body, timeout=30) as stream:
            for line in stream.iter_lines():
                done = line == "data: [DONE]"
                if line.startswith("data: {"):
                    event = json.loads(line[6:])
                    if "error" in event:
                        return None
                    text += event["choices"][0]["text"]
        if not done:
            raise httpx.RemoteProtocolError("the stream ended without [DONE]")
        return text


def _arguments(tiny: Tiny) -> list[str]:
    named = [f"--adapter={name}={folder}" for name, folder in tiny.adapters.items()]
    # a pool in which the adapters have no room together, so that some are evicted
    return ["--base", str(tiny.base), "--served-name", "tiny", *named, "--pool-memory", "800Ki", "--max-model-len=64"]


@pytest.fixture(scope="module")
def whole(tiny: Tiny) -> dict[str, str]:
    """What a server that nobody kills answers; that these answers are right is shown elsewhere."""
    with serve_process(_arguments(tiny)) as (_, addresses), httpx.Client(base_url=addresses["serving"]) as http:
        answers = {}
        for model in MODELS:
            body = {"model": model, "prompt": "Hello", "max_tokens": TOKENS, "temperature": 0}
            answers[model] = http.post("/v1/completions", json=body, timeout=60).json()["choices"][0]["text"]
        return answers


@pytest.mark.parametrize(
    "moment", [pytest.param(m, marks=() if m == "in mid-decode" else pytest.mark.fault) for m in MOMENTS]
)
def test_a_killed_server_leaves_no_answer_that_is_cut_off_and_marked_complete(
    tiny: Tiny, whole: dict[str, str], moment: str
) -> None:
    where, when, nth = MOMENTS[moment]
    prelude = PRELUDE.format(where=where, when=when, nth=nth)
    with serve_process(_arguments(tiny), prelude) as (process, addresses):
        ends = moment == "at shutdown"
        load = Load(addresses["serving"], **({"rounds": 3} if ends else {}))
        threads = [threading.Thread(target=load.run, args=(m, s)) for m in MODELS for s in (False, True)]
        for thread in threads:
            thread.start()
        if ends:
            process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive(), "no client hangs"
        assert process.wait(60) == -signal.SIGKILL, "it was killed where it was to be"
    assert ends or load.cut == len(threads), "each client saw its connection end"
    assert [answer for answer in load.complete if answer[1] != whole[answer[0]]] == []


@pytest.mark.fault
def test_a_server_killed_at_random_is_followed_by_one_that_serves(tiny: Tiny, whole: dict[str, str]) -> None:
    with serve_process(_arguments(tiny)) as (process, addresses):
        load = Load(addresses["serving"])
        threads = [threading.Thread(target=load.run, args=(m, True)) for m in MODELS]
        for thread in threads:
            thread.start()
        moment_s = random.uniform(0.0, 2.0)
        time.sleep(moment_s)
        process.kill()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive(), "no client hangs"
    wrong = [answer for answer in load.complete if answer[1] != whole[answer[0]]]
    assert wrong == [], f"killed {moment_s:.3f} s after the load began"
    with serve_process(_arguments(tiny)) as (_, addresses):
        body = {"model": "r8", "prompt": "Hello", "max_tokens": TOKENS, "temperature": 0}
        answer = httpx.post(f"{addresses['serving']}/v1/completions", json=body, timeout=60)
        assert answer.json()["choices"][0]["text"] == whole["r8"]
