"""``/metrics`` as Prometheus' own parser reads it, against what clients were told."""

from __future__ import annotations

import threading
from pathlib import Path

import httpx
import pytest
import torch
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from readapt_cluster.waiting import until
from readapt_runtime.engine.core import Batch
from readapt_runtime.server.limits import Limits
from readapt_runtime.server.startup import Options
from readapt_testing.serving import Running, serving
from readapt_testing.tiny_engine import Tiny

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def _scrape(http: httpx.Client) -> Samples:
    answer = http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(answer.text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def _value(samples: Samples, name: str, **labels: str) -> float:
    return samples[(name, frozenset(labels.items()))]


def _labels(samples: Samples, name: str) -> dict[str, str]:
    """Of the only sample of this name."""
    (found,) = [labels for sample, labels in samples if sample == name]
    return dict(found)


def _body(**more: object) -> dict[str, object]:
    return {"model": "r8", "prompt": "Hello", "max_tokens": 8, "temperature": 0.9, "seed": 1, **more}


def _ask(address: str, body: dict[str, object]) -> None:
    httpx.post(f"{address}/v1/completions", json=body, timeout=60)


def test_every_request_is_counted_once_by_its_outcome(http: httpx.Client) -> None:
    before = _scrape(http)
    asked = {"answered": 0, "refused": 0, "failed": 0, "gone": 0}
    for body in (_body(), _body(stream=True), _body(n=3)):
        assert http.post("/v1/completions", json=body).status_code == 200
        asked["answered"] += 1
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    assert http.post("/v1/chat/completions", json=chat).status_code == 200
    asked["answered"] += 1
    for body in (_body(n=0), _body(model="nobody"), _body(n=0, stream=True), {}):
        assert http.post("/v1/completions", json=body).status_code in (400, 404)
        asked["refused"] += 1
    assert http.post("/v1/completions", json=_body(model="broken")).status_code == 503
    asked["failed"] += 1
    after = _scrape(http)
    for outcome, count in asked.items():
        name = "readapt_requests_total"
        assert _value(after, name, outcome=outcome) - _value(before, name, outcome=outcome) == count, outcome


def test_a_client_that_goes_away_is_counted_as_gone(http: httpx.Client) -> None:
    def gone() -> float:
        return _value(_scrape(http), "readapt_requests_total", outcome="gone")

    before = gone()
    with pytest.raises(httpx.ReadTimeout):
        http.post("/v1/completions", json=_body(max_tokens=200, n=4), timeout=0.001)
    assert until(lambda: gone() == before + 1, 20.0, 0.02)
    with http.stream("POST", "/v1/completions", json=_body(max_tokens=200, n=4, stream=True)) as stream:
        next(stream.iter_lines())
    assert until(lambda: gone() == before + 2, 20.0, 0.02)


def test_tokens_and_times_are_those_of_the_answers(http: httpx.Client) -> None:
    before = _scrape(http)
    usage = [
        http.post("/v1/completions", json=body).json()["usage"]
        for body in (_body(), _body(n=2, prompt=["a", "bc"]), _body(max_tokens=1))
    ]
    after = _scrape(http)

    def grown(name: str) -> float:
        return _value(after, name) - _value(before, name)

    generated = sum(u["completion_tokens"] for u in usage)
    assert grown("readapt_generated_tokens_total") == generated
    # a prompt counts once per choice that it is computed for, as the engine does
    assert grown("readapt_prompt_tokens_total") == sum(u["prompt_tokens"] for u in usage)
    assert grown("readapt_time_to_first_token_seconds_count") == 3
    assert grown("readapt_request_seconds_count") == 3
    assert grown("readapt_inter_token_latency_seconds_count") == generated - 6, "six choices have a first token each"
    assert grown("readapt_time_to_first_token_seconds_sum") <= grown("readapt_request_seconds_sum")


def test_the_engines_numbers_are_the_engines(http: httpx.Client, server: Running) -> None:
    engine = server.machinery.engine
    http.post("/v1/completions", json=_body())
    assert until(lambda: _value(_scrape(http), "readapt_sequences", state="running") == 0, 20.0, 0.02)
    found = _scrape(http)
    pages = {kind: _value(found, "readapt_pool_pages", kind=kind) for kind in ("kv", "cached", "adapter", "free")}
    assert sum(pages.values()) == engine.pool.num_pages
    assert pages["kv"] == 0
    assert pages["adapter"] > 0
    assert _value(found, "readapt_adapter_loads_total") >= 1
    assert _value(found, "readapt_forward_passes_total") == engine.forward_passes
    served = engine.forward_passes - 1  # the base was asked once before the server
    assert _value(found, "readapt_engine_step_seconds_count") >= served
    assert _value(found, "readapt_engine_step_seconds_bucket", le="+Inf") >= served
    states = {state: _value(found, "readapt_adapters", state=state) for state in ("Verified", "Failed")}
    assert states == {"Verified": 4, "Failed": 1}
    build = _labels(found, "readapt_build_info")
    assert (build["revision"], build["dtype"]) == ("local", "float32")


def test_gateways_see_which_adapters_run_and_wait(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """One place in the batch, and steps that wait for us: the first answer runs, the second one waits."""
    limits = Limits(max_model_len=512, max_batch_tokens=1, pool_bytes=16 << 20)
    options = Options(base=tiny.base, served_name="tiny", port=0, admin_port=0, adapters=tiny.adapters, limits=limits)
    with serving(options) as server, httpx.Client(base_url=server.serving, timeout=30) as http:
        idle = _scrape(http)
        model = server.machinery.engine._model
        forward, permits = model.forward, threading.Semaphore(0)

        def step_by_step(batch: Batch) -> torch.Tensor:
            permits.acquire()
            return forward(batch)

        def see(running: str, waiting: str) -> bool:
            permits.release()
            info = _labels(_scrape(http), "vllm:lora_requests_info")
            return (info["running_lora_adapters"], info["waiting_lora_adapters"]) == (running, waiting)

        monkeypatch.setattr(model, "forward", step_by_step)
        body = {"prompt": "x", "max_tokens": 400, "temperature": 0}
        clients = [threading.Thread(target=_ask, args=(server.serving, {**body, "model": m})) for m in ("r8", "r4")]
        clients[0].start()
        assert until(lambda: see("r8", ""), 20.0, 0.01)
        clients[1].start()
        assert until(lambda: see("r8", "r4"), 20.0, 0.01)
        busy = _scrape(http)
        permits.release(10_000)
        for client in clients:
            client.join(60)
    info = _labels(busy, "vllm:lora_requests_info")
    assert info == {"max_lora": "1", "running_lora_adapters": "r8", "waiting_lora_adapters": "r4"}
    assert _value(busy, "vllm:num_requests_running", model_name="tiny") == 1
    assert _value(busy, "vllm:num_requests_waiting", model_name="tiny") == 1
    assert 0 < _value(busy, "vllm:gpu_cache_usage_perc", model_name="tiny") <= 1
    nobody = _labels(idle, "vllm:lora_requests_info")
    assert nobody == {"max_lora": "1", "running_lora_adapters": "", "waiting_lora_adapters": ""}
    times = [_value(s, "vllm:lora_requests_info", **labels) for s, labels in ((idle, nobody), (busy, info))]
    assert times == sorted(times)


def test_labels_take_few_values_and_no_names_of_adapters(http: httpx.Client, tiny: Tiny) -> None:
    for name in tiny.adapters:
        http.post("/v1/completions", json=_body(model=name))
    for name, labels in _scrape(http):
        if name != "vllm:lora_requests_info":
            assert not {value for _, value in labels} & set(tiny.adapters), name


def test_registries_are_not_shared(tiny: Tiny, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("secret")
    options = Options(base=tiny.base, served_name="tiny", port=0, admin_port=0, api_key_file=key)
    with serving(options) as fresh, httpx.Client(base_url=fresh.serving) as http:
        assert _value(_scrape(http), "readapt_requests_total", outcome="answered") == 0, "and no key is needed"
    assert not [m.name for m in REGISTRY.collect() if m.name.startswith(("readapt", "vllm"))]
