"""Adapters loaded, replaced and unloaded in a loop over HTTP while greedy answers are computed.

Every answer says in ``x-readapt-adapter`` which version computed it, and must be that version's answer as transformers
and PEFT give it alone; a name that is gone is 404, never the base's answer.
"""

from __future__ import annotations

import threading
from itertools import cycle
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from readapt_api.artifacts import ArtifactKind
from readapt_runtime.server.limits import Limits
from readapt_runtime.server.startup import Options
from readapt_runtime.store import Store
from readapt_testing.oracle import NEAR_TIE, Pair
from readapt_testing.serving import publish_variant, serving
from readapt_testing.tiny_engine import Tiny

REUSES = 200
TOKENS = 8
PROMPTS = ("Hello", "x", "abc", "Wie")


class Clients:
    """Ask under the names until told to stop; what they were told."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(m,)) for m in ("hot", "steady", "tiny")]
        self.told: list[tuple[str, str, str]] = []
        """(who computed it, prompt, text)"""
        self.statuses: set[int] = set()

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _ask(self, model: str) -> None:
        with httpx.Client(base_url=self._address, timeout=60) as http:
            for prompt in cycle(PROMPTS):
                if self._stop.is_set():
                    return
                self.ask(http, model, prompt)

    def ask(self, http: httpx.Client, model: str, prompt: str) -> None:
        body = {"model": model, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0}
        answer = http.post("/v1/completions", json=body)
        self.statuses.add(answer.status_code)
        if answer.status_code == 200:
            who = answer.headers.get("x-readapt-adapter", "tiny@base").split("@")[1]
            self.told.append((who, prompt, answer.json()["choices"][0]["text"]))


def _loads(http: httpx.Client) -> float:
    families = text_string_to_metric_families(http.get("/metrics").text)
    return next(s.value for f in families for s in f.samples if s.name == "readapt_adapter_loads_total")


def test_200_slot_reuses_never_mix_two_versions(tiny: Tiny, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    base = store.publish(ArtifactKind.BASE, tiny.base).digest
    variants = {
        n: publish_variant(store, tiny.adapters[n], base, None, tmp_path / n).digest for n in ("r3", "r4", "r8")
    }
    right = {
        digest: Pair(tiny.base, tiny.folder(name)).answers(PROMPTS, TOKENS)
        for name, digest in [(None, "base"), *variants.items()]
    }
    assert min(answer.margin for answers in right.values() for answer in answers.values()) > NEAR_TIE
    options = Options(
        base=store.open(base).path,
        served_name="tiny",
        port=0,
        admin_port=0,
        store=store.root,
        base_digest=base,
        # 24 pages of 12 KiB: the adapters and their answers have no room side by side
        limits=Limits(max_model_len=32, pool_bytes=24 * 12288, linger_s=0.2),
    )
    with (
        serving(options) as running,
        httpx.Client(base_url=running.admin, timeout=60) as admin,
        httpx.Client(base_url=running.serving, timeout=60) as http,
    ):

        def change(path: str, **body: object) -> None:
            assert admin.post(f"/v1/{path}", json=body).status_code == 200

        change("load_lora_adapter", lora_name="steady", lora_path=variants["r8"])
        with Clients(running.serving) as clients:
            for turn, digest in zip(range(1_000), cycle(variants.values()), strict=False):
                change("load_lora_adapter", lora_name="hot", lora_path=digest, load_inplace=True)
                clients.ask(http, "hot", PROMPTS[turn % len(PROMPTS)])
                if turn % 3 == 2:
                    change("unload_lora_adapter", lora_name="hot")
                if _loads(http) >= REUSES:
                    break
        assert _loads(http) >= REUSES
    assert clients.statuses <= {200, 404}
    assert {who for who, _, _ in clients.told} == set(right)
    texts = {(who, prompt): answer.text for who, answers in right.items() for prompt, answer in answers.items()}
    wrong = [told for told in clients.told if told[2] != texts[told[:2]]]
    assert wrong == []


def test_the_base_alone_after_adapters_is_bit_identical(tiny: Tiny) -> None:
    options = Options(base=tiny.base, served_name="tiny", port=0, admin_port=0, adapters=tiny.adapters)
    with serving(options) as running, httpx.Client(base_url=running.serving, timeout=60) as http:

        def base() -> object:
            body = {"model": "tiny", "prompt": "Hello", "max_tokens": 16, "temperature": 0, "logprobs": 5}
            return http.post("/v1/completions", json=body).json()["choices"]

        before = base()
        for name in tiny.adapters:
            body = {"model": name, "prompt": ["Hello", "x"], "n": 2, "max_tokens": 16}
            assert http.post("/v1/completions", json=body).status_code == 200
        assert base() == before
