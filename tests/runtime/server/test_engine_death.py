"""An engine that dies takes the process with it, visibly."""

from __future__ import annotations

import httpx
import pytest
import torch

from readapt_api.errors import EXIT_BUG
from readapt_cluster.waiting import until
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
