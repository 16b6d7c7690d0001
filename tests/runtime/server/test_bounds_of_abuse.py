"""More of what a client may try (D4, D5): each is refused or bounded, and neighbours are served."""

from __future__ import annotations

import re
import threading
from dataclasses import replace

import httpx
import pytest

from readapt_runtime.server.limits import Limits
from readapt_runtime.server.startup import Options
from readapt_testing.raw_http import connect, read_all
from readapt_testing.serving import Running, serving
from readapt_testing.tiny_engine import Tiny

LIMITS = Limits(max_model_len=256, pool_bytes=16 << 20, linger_s=0.2)


def _send(server: Running, content: bytes) -> bytes:
    """What comes back until the server closes."""
    with connect(server) as connection:
        connection.sendall(content)
        return read_all(connection)


def test_ten_thousand_headers_are_refused(server: Running, http: httpx.Client) -> None:
    headers = b"".join(b"x-%d: y\r\n" % i for i in range(10_000))
    assert b" 431 " in _send(server, b"GET /v1/models HTTP/1.1\r\nhost: x\r\n" + headers + b"\r\n").split(b"\r\n")[0]
    assert http.get("/healthz").status_code == 200


def test_a_body_that_is_shorter_than_its_length_says_is_refused_in_time(server: Running, http: httpx.Client) -> None:
    """The limit of the fixture is two seconds."""
    answer = _send(server, b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 5000\r\n\r\n{}")
    assert b" 200 " not in answer.split(b"\r\n")[0]
    assert http.get("/healthz").status_code == 200


def test_pipelined_requests_are_answered_in_order(server: Running) -> None:
    first, last = (
        b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    )
    answers = _send(server, first * 5 + last)
    assert re.findall(rb"HTTP/1\.1 (\d+)", answers) == [b"200"] * 5 + [b"404"]


@pytest.mark.parametrize("field", ["n", "max_tokens", "seed", "logprobs"])
@pytest.mark.parametrize("value", ["1e400", "99999999999999999999999", "-1e30", "1e15"])
def test_huge_numbers_are_refused(http: httpx.Client, field: str, value: str) -> None:
    content = f'{{"model": "tiny", "prompt": "x", "{field}": {value}}}'
    assert http.post("/v1/completions", content=content).status_code == 400


def test_ten_times_the_concurrency_is_429_for_the_rest(tiny: Tiny) -> None:
    options = Options(base=tiny.base, served_name="tiny", port=0, admin_port=0, limits=replace(LIMITS, max_in_flight=4))
    with serving(options) as server:
        statuses: list[int] = []

        def ask() -> None:
            body = {"model": "tiny", "prompt": "x", "max_tokens": 100, "temperature": 0, "n": 2}
            answer = httpx.post(f"{server.serving}/v1/completions", json=body, timeout=60)
            statuses.append(answer.status_code)
            assert answer.status_code == 200 or int(answer.headers["retry-after"]) > 0

        threads = [threading.Thread(target=ask) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert set(statuses) == {200, 429}
        ask()
        assert statuses[-1] == 200


def test_a_request_bigger_than_all_pages_is_refused_and_the_next_one_is_answered(tiny: Tiny) -> None:
    """Four pages of 12 KiB hold 64 tokens."""
    limits = replace(LIMITS, pool_bytes=4 * 12288)
    options = Options(base=tiny.base, served_name="tiny", port=0, admin_port=0, limits=limits)
    with serving(options) as server, httpx.Client(base_url=server.serving, timeout=30) as http:
        large = http.post("/v1/completions", json={"model": "tiny", "prompt": "x" * 100, "max_tokens": 2})
        assert (large.status_code, "pages" in large.json()["error"]["message"]) == (400, True)
        long = http.post("/v1/completions", json={"model": "tiny", "prompt": "x", "max_tokens": 100})
        assert long.status_code == 400
        assert http.post("/v1/completions", json={"model": "tiny", "prompt": "x", "max_tokens": 40}).status_code == 200
