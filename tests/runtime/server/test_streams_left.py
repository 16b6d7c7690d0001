"""Clients that leave a stream (D4): who reads nothing of it, and who goes away after any token.

Neighbours are answered as transformers and PEFT answer them, what was computed with is given back, memory is bounded.
"""

from __future__ import annotations

import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx
import psutil
import pytest
from transformers import AutoTokenizer

from readapt_cluster.waiting import until
from readapt_runtime.server.limits import Limits
from readapt_runtime.server.startup import Options
from readapt_testing.raw_http import read_all
from readapt_testing.serving import Running, serve_process, serving
from readapt_testing.tiny_engine import Tiny

LIMITS = Limits(max_model_len=256, pool_bytes=16 << 20, linger_s=0.2)
TOKENS = 20
STREAM = {"model": "r8", "prompt": "x", "temperature": 1, "seed": 5, "stream": True}
LONG = {**STREAM, "n": 16, "max_tokens": 200, "logprobs": 2}
"""Some 3200 chunks of 400 bytes: more than sockets and the server's buffer of a connection hold."""
ASKED = {"prompt": "Hello", "temperature": 0, "max_tokens": 12}
SOCKET_BYTES = 4096


@pytest.fixture(scope="module")
def server(tiny: Tiny) -> Iterator[Running]:
    options = Options(tiny.base, "tiny", port=0, admin_port=0, adapters=tiny.adapters, limits=LIMITS)
    with serving(options) as running:
        yield running


@pytest.fixture(scope="module")
def expected(tiny: Tiny) -> dict[str, str]:
    """Greedy answers by model."""
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny.base)
    prompt = tokenizer(ASKED["prompt"])["input_ids"]
    models = {"tiny": None, **{name: tiny.folder(name) for name in ("r3", "r8")}}
    answers = {name: tiny.oracle.greedy(folder, prompt, 12) for name, folder in models.items()}
    return {name: tokenizer.decode(tokens, skip_special_tokens=True) for name, tokens in answers.items()}


@contextmanager
def _stream(address: tuple[str, int], body: dict[str, object]) -> Iterator[socket.socket]:
    """A client with little room for what it has not read."""
    content = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(content)}\r\n\r\n"
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BYTES)
        connection.settimeout(60)
        connection.connect(address)
        connection.sendall(head.encode() + content)
        yield connection


def _address(url: str) -> tuple[str, int]:
    found = httpx.URL(url)
    return found.host, found.port or 0


def _assert_neighbours_are_answered(server: Running, expected: dict[str, str]) -> None:
    for model, text in expected.items():
        answer = httpx.post(f"{server.serving}/v1/completions", json={"model": model, **ASKED}, timeout=60)
        assert answer.json()["choices"][0]["text"] == text


def _assert_nothing_is_in_use(server: Running) -> None:
    """No sequence; every page is free, or kept and free to go."""
    engine = server.machinery.engine
    assert until(lambda: not engine.has_work, 60.0, 0.02)
    memory = engine.memory
    assert memory.pool.num_free + memory.prefixes.idle + memory.residency.idle_pages == memory.pool.num_pages


def _in_flight(admin: str) -> int:
    count: int = httpx.get(f"{admin}/v1/state").json()["inFlight"]
    return count


def test_who_reads_nothing_of_a_stream_holds_up_nobody_and_is_cut_off(tiny: Tiny, expected: dict[str, str]) -> None:
    limits = replace(LIMITS, stall_s=3.0)
    with serving(Options(tiny.base, "tiny", port=0, admin_port=0, adapters=tiny.adapters, limits=limits)) as server:
        address = _address(server.serving)
        with _stream(address, LONG) as slow, _stream(address, LONG) as another:
            assert until(lambda: _in_flight(server.admin) == 32, 60.0, 0.02)
            _assert_neighbours_are_answered(server, expected)
            _assert_nothing_is_in_use(server)  # their answers are computed, read or not
            assert until(lambda: _in_flight(server.admin) == 0, 60.0, 0.05)
            for connection in (slow, another):
                assert b"[DONE]" not in read_all(connection), "what was not taken was not sent"
        _assert_neighbours_are_answered(server, expected)


def test_who_reads_slowly_but_reads_gets_the_whole_stream(server: Running) -> None:
    with _stream(_address(server.serving), {**LONG, "n": 4}) as slow:
        assert until(lambda: not server.machinery.engine.has_work, 60.0, 0.02)
        received = b""
        while chunk := slow.recv(SOCKET_BYTES):
            received += chunk
    assert received.count(b'"finish_reason":"') == 4
    assert b"data: [DONE]" in received


def test_a_client_may_go_away_after_any_token(server: Running, expected: dict[str, str]) -> None:
    done = threading.Event()
    failures: list[BaseException] = []

    def ask() -> None:
        try:
            while not done.is_set():
                _assert_neighbours_are_answered(server, expected)
        except BaseException as error:
            failures.append(error)
            raise

    neighbour = threading.Thread(target=ask)
    neighbour.start()
    for tokens in range(TOKENS):
        with _stream(_address(server.serving), {**STREAM, "max_tokens": 200, "n": 2}) as leaving:
            received = b""
            while received.count(b"data: ") < tokens:
                received += leaving.recv(SOCKET_BYTES)
    done.set()
    neighbour.join(60)
    assert failures == []
    assert until(lambda: _in_flight(server.admin) == 0, 60.0, 0.02)
    _assert_nothing_is_in_use(server)


@pytest.mark.fault
def test_what_nobody_reads_takes_little_memory(tiny: Tiny) -> None:
    arguments = ["--base", str(tiny.base), "--served-name", "tiny", "--adapter", f"r8={tiny.adapters['r8']}"]
    with serve_process([*arguments, "--pool-memory", "16Mi", "--max-model-len", "256"]) as (process, addresses):
        address = _address(addresses["serving"])
        assert httpx.post(f"{addresses['serving']}/v1/completions", json={"model": "r8", **ASKED}).status_code == 200
        before = _private_bytes(process)
        with _stream(address, LONG), _stream(address, LONG), _stream(address, LONG), _stream(address, LONG):
            assert until(lambda: _in_flight(addresses["admin"]) == 64, 60.0, 0.02)
            assert until(lambda: _computing(addresses["serving"]) == 0, 60.0, 0.05)
            assert _private_bytes(process) - before < 32 << 20


def _computing(url: str) -> float:
    """Sequences in the engine."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return sum(float(line.split()[1]) for line in lines if line.startswith("readapt_sequences{"))


def _private_bytes(process: subprocess.Popen[str]) -> int:
    held: int = psutil.Process(process.pid).memory_full_info().uss
    return held
