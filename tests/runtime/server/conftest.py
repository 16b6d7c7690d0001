"""A server over the tiny base. Which test keeps which promise of serving:

| promise | kept by |
| --- | --- |
| D1 killed under load: complete, an error, or a closed connection | test_kill_under_load |
| D2 SIGTERM drains | test_process_life |
| D3 a dead or hung engine is seen, and ends the process non-zero | test_engine_death |
| D4 abuse is refused and bounded, neighbours are served | test_bounds, test_bounds_of_abuse, test_streams_left |
| D5 what is larger than all pages is refused | test_bounds_of_abuse, engine/test_engine_life |
| D6 no answer mixes two adapters or versions | test_no_leak_between_adapters, engine/test_engine_life |
| D7 unload in use, concurrent and failing loads, mixed ranks | test_hand_loading, engine/test_mixed_batch |
| D8 the pool balances | engine/test_pool |
| D9 a fault at any call of a step ends the engine | engine/test_injected_faults, test_engine_death |
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from readapt_runtime.server.limits import Limits
from readapt_runtime.server.startup import Options
from readapt_testing.serving import Running, serving
from readapt_testing.tiny_engine import Tiny, build_tiny

LIMITS = Limits(max_model_len=256, pool_bytes=16 << 20, max_body_bytes=64 << 10, receive_s=2.0, linger_s=0.2)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A tiny Llama with adapters, as folders."""
    return build_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def broken_adapter(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter whose weights are cut off in the middle."""
    folder = tmp_path_factory.mktemp("broken")
    for file in tiny.adapters["r8"].iterdir():
        content = file.read_bytes()
        (folder / file.name).write_bytes(content[: len(content) // 2] if file.suffix == ".safetensors" else content)
    return folder


@pytest.fixture(scope="module")
def server(tiny: Tiny, broken_adapter: Path) -> Iterator[Running]:
    """A server with the tiny base and its adapters, one of which is broken."""
    options = Options(
        base=tiny.base,
        served_name="tiny",
        port=0,
        admin_port=0,
        adapters={**tiny.adapters, "broken": broken_adapter},
        limits=LIMITS,
    )
    with serving(options) as running:
        yield running
    assert running.exit_code == 0


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.serving}/v1", api_key="unused", max_retries=0) as made:
        yield made


@pytest.fixture
def http(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.serving, timeout=30) as made:
        yield made
