"""An engine that dies, or hangs, takes the process with it, visibly."""

from __future__ import annotations

import contextlib
import threading

import httpx
import pytest
import torch

from readapt_api.errors import EXIT_BUG
from readapt_cluster.waiting import until
from readapt_runtime.server.limits import Limits
from readapt_runtime.server.startup import Options
from readapt_testing.serving import serving
from readapt_testing.tiny_engine import Tiny


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_an_engine_that_dies_answers_with_an_error_and_ends_the_process(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    with serving(Options(base=tiny.base, served_name="tiny", port=0, admin_port=0)) as server:
        engine = server.machinery.engine
        forward = engine._model.forward

        def break_at_the_fifth(batch: object) -> torch.Tensor:
            if engine.forward_passes == 5:
                raise MemoryError("out of device memory")
            return forward(batch)  # type: ignore[arg-type]

        monkeypatch.setattr(engine._model, "forward", break_at_the_fifth)
        body = {"model": "tiny", "prompt": "x", "max_tokens": 50, "stream": stream, "temperature": 0}
        answer = httpx.post(f"{server.serving}/v1/completions", json=body, timeout=30)
        if stream:
            assert '"error"' in answer.text
            assert "[DONE]" not in answer.text
        else:
            assert answer.status_code == 503

        def gone() -> bool:
            try:
                assert httpx.get(f"{server.serving}/healthz").status_code == 500
            except httpx.TransportError:
                return True
            return False

        assert until(gone, 20, every_s=0.01), "the server still answers 20 s after its engine died"
    assert server.exit_code == EXIT_BUG


def test_an_engine_that_hangs_turns_health_red_and_ends_the_process(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    go_on = threading.Event()
    limits = Limits(max_model_len=256, pool_bytes=16 << 20, step_s=1.0)
    with serving(Options(base=tiny.base, served_name="tiny", port=0, admin_port=0, limits=limits)) as server:
        engine = server.machinery.engine
        forward = engine._model.forward

        def hang_at_the_fifth(batch: object) -> torch.Tensor:
            if engine.forward_passes == 5:
                go_on.wait(60)
            return forward(batch)  # type: ignore[arg-type]

        monkeypatch.setattr(engine._model, "forward", hang_at_the_fifth)
        body = {"model": "tiny", "prompt": "x", "max_tokens": 50, "temperature": 0, "stream": True}
        text, seen = "", set[str]()
        health = threading.Thread(target=_watch_health, args=(server.serving, seen))
        health.start()
        with (
            contextlib.suppress(httpx.TransportError),
            httpx.stream("POST", f"{server.serving}/v1/completions", json=body, timeout=30) as stream,
        ):
            for chunk in stream.iter_text():
                text += chunk
        assert text.startswith("data: {"), "the tokens before it were sent"
        assert "[DONE]" not in text
        health.join(60)
        go_on.set()
    assert "the engine hangs" in seen
    assert server.exit_code == EXIT_BUG
    assert "EngineHung" in caplog.text


def _watch_health(address: str, seen: set[str]) -> None:
    """Until the server is gone."""
    with contextlib.suppress(httpx.TransportError):
        while True:
            answer = httpx.get(f"{address}/healthz", timeout=10)
            assert answer.status_code == (200 if answer.text == "ok" else 500)
            seen.add(answer.text)
