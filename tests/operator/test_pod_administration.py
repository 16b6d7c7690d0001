"""Signed calls to real HTTP servers on loopback, one address per pod."""

from __future__ import annotations

import asyncio
import base64
import json
import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
import pytest

from readapt_api.serving import DesiredSet, PodState
from readapt_operator.pods import PodClient
from readapt_operator.queue import Key
from readapt_operator.signing import KEY_FILE, SECRET_NAME, BadSigningKey, Signer, load_signer
from readapt_testing.fake_kube import FakeKube

BASE = Key("team-a", "smollm2")
STATE = PodState(
    revision="r",
    base="sha256:" + 64 * "0",
    sequence=1,
    set_digest=None,
    ready=True,
    draining=False,
    in_flight=0,
    connections=0,
)


class Pod(ThreadingHTTPServer):
    """Keeps what it was asked; answers with ``answer``."""

    daemon_threads = True

    def __init__(self, ip: str, port: int) -> None:
        self.asked: list[tuple[str, str, dict[str, Any]]] = []
        self.answer = (200, STATE.model_dump_json(by_alias=True, exclude_none=True).encode())
        super().__init__((ip, port), _Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    server: Pod

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        token = self.headers["Authorization"].removeprefix("Bearer ")
        self.server.asked.append((f"{self.command} {self.path}", token, json.loads(body) if body else {}))
        status, content = self.server.answer
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = _answer

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def signer() -> Signer:
    return asyncio.run(load_signer(FakeKube(lambda: ""), "sys"))


@pytest.fixture
def pods() -> Iterator[list[Pod]]:
    with socketserver.TCPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as probe:
        port = probe.server_address[1]
    running = [Pod(f"127.0.0.{i}", port) for i in (1, 2)]
    yield running
    for pod in running:
        pod.shutdown()
        pod.server_close()


def ask(signer: Signer, pods: list[Pod], *calls: Any) -> list[Any]:
    """Results of calls on a client, each given as client -> coroutine."""

    async def run() -> list[Any]:
        client = PodClient(signer, port=pods[0].server_address[1], timeout_s=1.0)
        try:
            return [await call(client) for call in calls]
        finally:
            await client.close()

    return asyncio.run(run())


def test_states_of_the_pods_that_answer(signer: Signer, pods: list[Pod]) -> None:
    pods[1].answer = (500, b"")
    ips = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
    (states,) = ask(signer, pods, lambda c: c.states(BASE, ips))
    assert states == {"127.0.0.1": STATE}


def test_a_state_that_cannot_be_read_is_none(signer: Signer, pods: list[Pod]) -> None:
    pods[0].answer = (200, b'{"revision": 1}')
    (states,) = ask(signer, pods, lambda c: c.states(BASE, ["127.0.0.1"]))
    assert states == {}


def test_tokens_are_short_lived_for_one_base_and_checked_with_the_public_key(signer: Signer, pods: list[Pod]) -> None:
    desired = DesiredSet(sequence=4, revision="r", base=STATE.base)
    ips = ["127.0.0.1", "127.0.0.2"]
    ask(signer, pods, lambda c: c.push(BASE, ips, desired), lambda c: c.drain(BASE, ips))
    for pod in pods:
        assert [(what, body) for what, _, body in pod.asked] == [
            ("POST /v1/desired", desired.to_wire()),
            ("POST /v1/drain", {}),
        ]
        for _, token, _ in pod.asked:
            claims = jwt.decode(token, signer.public_pem, algorithms=["EdDSA"], audience="readapt-admin")
            assert claims["sub"] == "team-a/smollm2"
            header = jwt.get_unverified_header(token)
            assert header["alg"] == "EdDSA"
    with pytest.raises(jwt.InvalidAudienceError):
        jwt.decode(pods[0].asked[0][1], signer.public_pem, algorithms=["EdDSA"], audience="other")


def test_the_key_is_made_once_and_read_afterwards() -> None:
    kube = FakeKube(lambda: "")
    first = asyncio.run(load_signer(kube, "sys"))
    second = asyncio.run(load_signer(kube, "sys"))
    assert first.public_pem == second.public_pem
    assert [w[:2] for w in kube.writes] == [("create", "Secret")]


@pytest.mark.parametrize("content", [b"", b"no key"], ids=["empty", "garbage"])
def test_a_broken_key_is_a_persons_matter(content: bytes) -> None:
    kube = FakeKube(lambda: "")
    asyncio.run(load_signer(kube, "sys"))
    kube.change("Secret", SECRET_NAME, "sys", data={KEY_FILE: base64.b64encode(content).decode()})
    with pytest.raises(BadSigningKey):
        asyncio.run(load_signer(kube, "sys"))
