"""What a client may cost: bodies, headers, slowness, disconnects. Neighbours are served throughout."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import httpx
import pytest

from readapt_cluster.waiting import until
from readapt_testing.raw_http import connect, read_all
from readapt_testing.serving import Running

MAX_BODY = 64 << 10


def _still_serves(http: httpx.Client) -> bool:
    return http.post("/v1/completions", json={"model": "r4", "prompt": "x", "max_tokens": 1}).status_code == 200


def test_a_declared_body_over_the_cap_is_refused(http: httpx.Client) -> None:
    answer = http.post("/v1/completions", json={"model": "tiny", "prompt": "x" * MAX_BODY})
    assert answer.status_code == 413
    assert answer.headers["connection"] == "close"
    assert _still_serves(http)


def test_a_chunked_body_is_counted_as_it_comes(http: httpx.Client, server: Running) -> None:
    with connect(server) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        chunk = b"4000\r\n" + b" " * 0x4000 + b"\r\n"
        for _ in range(5):
            connection.sendall(chunk)
        assert b" 413 " in connection.recv(4096).split(b"\r\n")[0]
    assert _still_serves(http)


def test_headers_over_the_cap_are_refused(http: httpx.Client, server: Running) -> None:
    with connect(server) as connection:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nhost: x\r\nx-large: " + b"a" * (80 << 10))
        assert read_all(connection).split(b"\r\n")[0].split()[1] == b"400"
    assert _still_serves(http)


@pytest.mark.parametrize(
    "start",
    [b"GET /v1/models HTTP/1.1\r\n", b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{"],
    ids=["headers", "body"],
)
def test_a_request_that_does_not_arrive_in_time_loses_its_connection(server: Running, start: bytes) -> None:
    """Bytes keep dripping, so that no idle timer sees it; the limit is two seconds for the whole request."""
    began = time.monotonic()
    with connect(server) as connection:
        connection.sendall(start)
        connection.settimeout(0.2)
        closed = False
        while not closed and time.monotonic() - began < 15:
            try:
                closed = connection.recv(4096) == b""
                connection.sendall(b"x")
            except TimeoutError:
                connection.sendall(b"x")
            except OSError:
                closed = True
    assert closed
    assert 1.5 < time.monotonic() - began < 12


def test_a_second_request_on_a_connection_has_its_own_time(server: Running) -> None:
    with httpx.Client(base_url=server.serving) as http:
        deadline = time.monotonic() + 3.0
        while time.monotonic() < deadline:  # longer than the two seconds that one request may take
            assert http.get("/healthz").status_code == 200


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_client_that_goes_away_frees_its_place(http: httpx.Client, server: Running, stream: bool) -> None:
    body = {"model": "r8", "prompt": "x", "max_tokens": 200, "temperature": 1, "seed": 5, "n": 4, "stream": stream}
    content = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n\r\n".encode()
    with connect(server) as connection:
        connection.sendall(head + content)
        assert until(lambda: _in_flight(server) == 4, 20.0, 0.02)
    assert until(lambda: _in_flight(server) == 0, 3.0, 0.02)
    assert until(lambda: not server.machinery.engine.has_work, 3.0, 0.02)
    assert _still_serves(http)


def _in_flight(server: Running) -> int:
    count: int = httpx.get(f"{server.admin}/v1/state").json()["inFlight"]
    return count


@pytest.fixture(autouse=True)
def engine_is_idle_afterwards(server: Running) -> Iterator[None]:
    yield
    assert until(lambda: not server.machinery.engine.has_work, 20.0, 0.02)
    server.machinery.engine.pool.check()
