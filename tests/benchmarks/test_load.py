"""The driver against a real server, and against servers that misbehave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import openai
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from load import Target, main, replay
from outcomes import Outcome
from traffic import Arrival, write_trace

from readapt_runtime.server.limits import Limits
from readapt_runtime.server.startup import Options
from readapt_testing.serving import Running, serving
from readapt_testing.tiny_engine import Tiny, build_tiny

TRACE = [Arrival(0.02 * i, (None, 0, 1, 2)[i % 4], 5 + i, 6) for i in range(12)]
BYTES = "1:200"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return build_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def server(tiny: Tiny) -> Iterator[Running]:
    limits = Limits(max_model_len=256, pool_bytes=16 << 20, linger_s=0.2)
    options = Options(tiny.base, "tiny", port=0, admin_port=0, adapters=tiny.adapters, limits=limits)
    with serving(options) as running:
        yield running


def _trace(folder: Path, arrivals: list[Arrival]) -> str:
    path = folder / "trace.jsonl"
    path.write_text(write_trace(arrivals))
    return str(path)


def test_a_run_against_our_server_is_whole_and_counts_what_the_openai_client_counts(
    server: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--url", server.serving, "--models", "r4,r8,r64", "--base", "tiny", "--vocabulary", BYTES]
    out = tmp_path / "run.json"

    assert main([*arguments, "--trace", _trace(tmp_path, TRACE), "--json", str(out), "--slo", "60"]) == 0

    record = json.loads(out.read_text())
    assert record["summary"]["completed"] == len(TRACE)
    assert record["summary"]["attainment"] == {"60": 1.0}
    assert "| run | 12 / 12 |" in capsys.readouterr().out
    target = Target(server.serving, ("r4", "r8", "r64"), "tiny", (1, 200))
    with openai.OpenAI(base_url=f"{server.serving}/v1", api_key="unused") as client:
        for number, (arrival, outcome) in enumerate(zip(TRACE, record["outcomes"], strict=True)):
            answer = client.completions.create(**target.body(arrival, 42 + number))
            assert answer.usage is not None
            assert outcome["model"] == answer.model
            assert outcome["tokens"] == answer.usage.completion_tokens
            assert outcome["chunks"] == sorted(outcome["chunks"])


def test_errors_are_counted_by_kind_and_end_non_zero(
    server: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = _trace(tmp_path, [Arrival(0.0, 0, 4, 2), Arrival(0.0, 1, 4, 2), Arrival(0.0, 2, 4, 999)])

    code = main(["--url", server.serving, "--models", "r4,unknown,r8", "--trace", trace, "--vocabulary", BYTES])

    assert code == 1
    assert "1 × HTTP 400, 1 × HTTP 404" in capsys.readouterr().out


@asynccontextmanager
async def _misbehaving(handler: Handler) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/v1/completions", handler)
    async with TestServer(app) as server:
        yield str(server.make_url("/")).rstrip("/")


async def _stream(request: web.Request, *lines: str) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for line in lines:
        await response.write(f"data: {line}\n\n".encode())
    return response


TOKEN = json.dumps({"choices": [{"text": "x", "finish_reason": None}]})
LAST = json.dumps({"choices": [{"text": "x", "finish_reason": "length"}]})
USAGE = json.dumps({"choices": [], "usage": {"completion_tokens": 2}})


async def _run(handler: Handler, arrivals: list[Arrival], timeout_s: float = 30.0) -> list[Outcome]:
    async with _misbehaving(handler) as url:
        return await replay(arrivals, Target(url, ("m",), timeout_s=timeout_s))


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        ([TOKEN, LAST, USAGE, "[DONE]"], ""),
        ([TOKEN, LAST, USAGE], "answer cut off"),
        ([TOKEN, "[DONE]"], "answer cut off"),
        ([TOKEN, json.dumps({"error": {"message": "engine died"}}), "[DONE]"], "error in the stream"),
        ([TOKEN, "{"], "answer cut off"),
    ],
    ids=["whole", "no end", "no finish", "error", "half a document"],
)
def test_a_broken_stream_is_an_error_of_its_kind(lines: list[str], error: str) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return await _stream(request, *lines)

    (outcome,) = asyncio.run(_run(answer, [Arrival(0.0, 0, 3, 2)]))

    assert outcome.error == error
    assert len(outcome.chunks) == (2 if LAST in lines else 1)


def test_a_server_that_never_answers_is_given_up() -> None:
    async def silent(request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    (outcome,) = asyncio.run(_run(silent, [Arrival(0.0, 0, 3, 2)], timeout_s=0.1))

    assert outcome.error == "no answer within 0.1 s"


def test_nobody_listening_is_an_error_and_no_crash() -> None:
    (outcome,) = asyncio.run(replay([Arrival(0.0, 0, 3, 2)], Target("http://127.0.0.1:1", ("m",))))

    assert outcome.error == "ClientConnectorError"


def test_requests_are_sent_when_due_while_no_answer_has_come_yet() -> None:
    """The server holds every answer back until the last request is there: a closed loop would wait for ever."""
    trace = [Arrival(0.001 * i, 0, 3, 2) for i in range(150)]

    async def hold() -> list[Outcome]:
        waiting, all_here = [0], asyncio.Event()

        async def handler(request: web.Request) -> web.StreamResponse:
            waiting[0] += 1
            if waiting[0] == len(trace):
                all_here.set()
            await all_here.wait()
            return await _stream(request, TOKEN, LAST, USAGE, "[DONE]")

        return await _run(handler, trace)

    outcomes = asyncio.run(hold())

    assert {o.error for o in outcomes} == {""}
    assert max(o.sent for o in outcomes) < min(o.chunks[0] for o in outcomes)
    starts = [o.scheduled - outcomes[0].scheduled for o in outcomes]
    assert starts == pytest.approx([arrival.at for arrival in trace], abs=1e-9)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--extra", "{"], "--extra"),
        (["--extra", "[]"], "must be an object"),
        (["--vocabulary", "5"], "must be two numbers"),
        (["--vocabulary", "9:3"], "must be two numbers"),
        (["--trace", "/nowhere"], "No such file"),
        (["--json", "/nowhere/run.json"], "no such folder: /nowhere"),
        (["--rate", "0"], "rate must be positive"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_wish_is_refused_before_anything_is_sent(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--url", "http://127.0.0.1:1", "--models", "a", *arguments])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
