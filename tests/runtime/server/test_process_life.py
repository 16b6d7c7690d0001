"""``readapt serve`` as a process: drain, SIGTERM, a dead engine, bad options."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from readapt_cluster.waiting import until
from readapt_testing.serving import COMMAND, serve_process
from readapt_testing.tiny_engine import Tiny


@pytest.fixture
def started(tiny: Tiny) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    arguments = ["--base", str(tiny.base), "--served-name", "tiny", "--adapter", f"r8={tiny.adapters['r8']}"]
    with serve_process([*arguments, "--pool-memory", "64Mi", "--max-model-len", "512"]) as server:
        yield server


def _body(count: int = 3) -> dict[str, object]:
    return {"model": "r8", "prompt": "x", "max_tokens": count, "temperature": 1, "seed": 1}


def test_a_draining_pod_answers_everybody_and_closes_each_connection_after_its_answer(
    started: tuple[subprocess.Popen[str], dict[str, str]],
) -> None:
    _, addresses = started
    failures: list[Exception] = []
    closed: list[bool] = []
    stop = threading.Event()

    def keep_asking() -> None:
        with httpx.Client(base_url=addresses["serving"], timeout=30) as http:
            while not stop.is_set():
                try:
                    answer = http.post("/v1/completions", json=_body())
                    answer.raise_for_status()
                    closed.append(answer.headers.get("connection") == "close")
                except httpx.HTTPError as error:
                    failures.append(error)

    clients = [threading.Thread(target=keep_asking) for _ in range(3)]
    with httpx.Client(base_url=addresses["admin"]) as admin, httpx.Client(base_url=addresses["serving"]) as idle:
        assert idle.get("/readyz").headers.get("connection") != "close"
        for client in clients:
            client.start()
        _wait(lambda: len(closed) >= 10)
        assert admin.get("/v1/state").json()["connections"] >= 1
        assert not any(closed)
        assert admin.post("/v1/drain").json()["draining"] is True
        mark = len(closed)
        _wait(lambda: len(closed) >= mark + 20)
        # the kept-alive connection is still open, is answered once more, and then closes
        answer = idle.get("/readyz")
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        stop.set()
        for client in clients:
            client.join(30)
        assert failures == []
        assert all(closed[mark + 3 :]), "at most the answers already on their way lack Connection: close"
        _wait(lambda: admin.get("/v1/state").json()["connections"] == 0)


def test_sigterm_unreadies_finishes_what_runs_and_exits_with_0(
    started: tuple[subprocess.Popen[str], dict[str, str]],
) -> None:
    process, addresses = started
    # the idle connection keeps the server lingering, however early the answer is complete
    with (
        httpx.Client(base_url=addresses["serving"], timeout=60) as http,
        httpx.Client(base_url=addresses["serving"], timeout=60) as idle,
    ):
        assert idle.get("/readyz").status_code == 200
        body = _body(480) | {"n": 32}  # long enough to be seen in flight on a busy machine
        whole = http.post("/v1/completions", json=body).json()
        results: list[httpx.Response] = []
        asking = threading.Thread(target=lambda: results.append(http.post("/v1/completions", json=body)))
        asking.start()
        with httpx.Client(base_url=addresses["admin"]) as admin:
            _wait(lambda: admin.get("/v1/state").json()["inFlight"] > 0)
        process.send_signal(signal.SIGTERM)
        _wait(lambda: idle.get("/readyz").status_code == 503)
        asking.join(60)
    assert results[0].json()["choices"] == whole["choices"], "the answer is whole"
    assert process.wait(30) == 0


def test_an_idle_server_leaves_at_once(started: tuple[subprocess.Popen[str], dict[str, str]]) -> None:
    process, addresses = started
    assert httpx.get(f"{addresses['serving']}/healthz").status_code == 200
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    address = urlsplit(addresses["serving"])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((str(address.hostname), address.port or 0), timeout=5)


def _wait(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    assert until(condition, seconds, every_s=0.01), "not in time"


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    script = f"import sys; sys.argv = ['serve', '--help']\ntry:\n    exec({COMMAND!r})\nexcept SystemExit:\n    pass\n"
    script += "print(sorted({'torch', 'transformers', 'uvicorn'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "--drain-keep-alive-seconds" in done.stdout or "--drain-keep-alive" in done.stdout


HANGS = {
    "an adapter that is registered": "from readapt_runtime.lora_format import AdapterReader as m; m.read = hang",
    "an adapter on its way into the pool": "from readapt_runtime.engine.pool import PagePool as m; m.write = hang",
}


@pytest.mark.parametrize("place", HANGS.values(), ids=HANGS)
def test_a_read_that_never_returns_does_not_hold_up_the_end(tiny: Tiny, place: str) -> None:
    """As of a volume that is gone: its thread is in the system call, and cannot be told to stop."""
    prelude = "import threading\nhang = lambda *_: (print('reading', flush=True), threading.Event().wait())\n" + place
    arguments = ["--base", str(tiny.base), "--served-name", "tiny", "--adapter", f"r8={tiny.adapters['r8']}"]
    with serve_process([*arguments, "--pool-memory", "16Mi", "--max-model-len", "64"], prelude) as (process, addresses):
        assert process.stdout is not None
        address = urlsplit(addresses["serving"])
        with socket.create_connection((str(address.hostname), address.port or 0)) as client:
            content = b'{"model": "r8", "prompt": "x"}'
            head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(content)
            client.sendall(head + content)
            assert process.stdout.readline() == "reading\n"
            assert httpx.get(f"{addresses['serving']}/healthz").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
