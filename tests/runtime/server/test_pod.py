"""A pod over a store: desired sets pushed and on disk, probes, generations, readiness, the guarded admin port."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from transformers import AutoTokenizer

from readapt_api.artifacts import ArtifactKind, Probe
from readapt_api.contract import Digest
from readapt_api.digest import digest_of
from readapt_api.serving import TOKEN_AUDIENCE, DesiredAdapter, DesiredSet, PodState
from readapt_cluster.waiting import until
from readapt_runtime.lora_format import LoraAdapter, LoraModule, read_adapter, write_adapter
from readapt_runtime.probe import candidate_prompts, record
from readapt_runtime.server.limits import Limits
from readapt_runtime.server.startup import Options
from readapt_runtime.store import Store
from readapt_testing.serving import Running, publish_variant, serving, write_shards
from readapt_testing.tiny_engine import Tiny

KEY = Ed25519PrivateKey.generate()
LIMITS = Limits(max_model_len=256, pool_bytes=16 << 20, linger_s=0.2)


@dataclass
class Pod:
    """A store with variants, and what a pod over it is started with."""

    tiny: Tiny
    store: Store
    base: Digest
    variants: dict[str, Digest]
    options: Options
    sequence: int = 0

    def desired(self, **adapters: str) -> DesiredSet:
        """name=variant; the next sequence number."""
        self.sequence += 1
        wanted = tuple(DesiredAdapter(name=n, digest=self.variants.get(v, v)) for n, v in adapters.items())
        return DesiredSet(sequence=self.sequence, revision="rev-1", base=self.base, adapters=wanted)


@dataclass
class Operator:
    """The operator's side of the administration port."""

    http: httpx.Client

    def headers(self) -> dict[str, str]:
        claims = {"aud": TOKEN_AUDIENCE, "sub": "team-a/tiny", "exp": int(time.time()) + 300}
        return {"authorization": f"Bearer {jwt.encode(claims, KEY, 'EdDSA')}"}

    def push(self, desired: DesiredSet) -> httpx.Response:
        return self.http.post("/v1/desired", json=desired.to_wire(), headers=self.headers())

    def state(self) -> PodState:
        return PodState.model_validate(self.http.get("/v1/state", headers=self.headers()).json())

    def settled(self) -> dict[str, tuple[str, str]]:
        """name -> (state, reason) once nothing is pending or being verified."""
        decided = ("Verified", "Failed")
        assert until(lambda: all(a.state in decided for a in self.state().adapters), 30.0, 0.02), self.state()
        return {a.name: (a.state, a.reason) for a in self.state().adapters}


def _probe(tiny: Tiny, name: str) -> Probe:
    """Recorded with transformers + PEFT, as the Jobs do."""
    model = tiny.oracle.model(tiny.adapters[name])
    tokenizer = AutoTokenizer.from_pretrained(tiny.base)
    return record(model.get_base_model(), model, candidate_prompts(tokenizer))


def _inert(tiny: Tiny, folder: Path) -> Path:
    """The adapter r8 with B = 0."""
    adapter = read_adapter(tiny.adapters["r8"], tiny.config.module_shapes)
    zeroed = {n: LoraModule(n, m.a, torch.zeros_like(m.b), m.scale) for n, m in adapter.modules.items()}
    write_adapter(folder, LoraAdapter(zeroed), "tiny")
    return folder


@pytest.fixture(scope="module")
def pod(tiny: Tiny, broken_adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Pod:
    root = tmp_path_factory.mktemp("pod")
    store = Store(root / "store")
    base = store.publish(ArtifactKind.BASE, tiny.base)
    with_probe = {name: _probe(tiny, name) for name in ("r4", "r8")}
    probed = {
        "r4": (tiny.adapters["r4"], with_probe["r4"]),
        "r8": (tiny.adapters["r8"], with_probe["r8"]),
        "r64": (tiny.adapters["r64"], None),
        "swapped": (tiny.adapters["r3"], with_probe["r8"]),
        "inert": (_inert(tiny, root / "inert-adapter"), with_probe["r8"]),
        "broken": (broken_adapter, None),
    }
    variants = {
        name: publish_variant(store, folder, base.digest, probe, root / name).digest
        for name, (folder, probe) in probed.items()
    }
    variants["stranger"] = publish_variant(
        store, tiny.adapters["r4"], digest_of("another base"), None, root / "stranger"
    ).digest
    key = root / "key.pem"
    key.write_bytes(KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    options = Options(
        base=store.open(base.digest).path,
        served_name="tiny",
        port=0,
        admin_port=0,
        store=store.root,
        set_dir=root / "set",
        revision="rev-1",
        base_digest=base.digest,
        admin_public_key=key,
        admin_subject="team-a/tiny",
        limits=LIMITS,
    )
    return Pod(tiny, store, base.digest, variants, options)


@pytest.fixture(scope="module")
def running(pod: Pod) -> Iterator[Running]:
    assert pod.options.set_dir is not None
    write_shards(pod.options.set_dir, pod.desired(first="r4"))
    with serving(pod.options) as server:
        yield server


@pytest.fixture
def operator(running: Running) -> Iterator[Operator]:
    with httpx.Client(base_url=running.admin) as http:
        yield Operator(http)


@pytest.fixture
def http(running: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=running.serving, timeout=30) as made:
        yield made


def _ask(http: httpx.Client, model: str, **more: object) -> httpx.Response:
    body = {"model": model, "prompt": "Hello", "temperature": 0, "max_tokens": 10, **more}
    return http.post("/v1/completions", json=body)


def _greedy(pod: Pod, name: str) -> str:
    tokenizer: Any = AutoTokenizer.from_pretrained(pod.tiny.base)
    tokens = pod.tiny.oracle.greedy(pod.tiny.adapters[name], tokenizer("Hello")["input_ids"], 10)
    text: str = tokenizer.decode(tokens, skip_special_tokens=True)
    return text


def test_the_set_on_disk_is_served_and_verified(pod: Pod, http: httpx.Client, operator: Operator) -> None:
    assert operator.settled() == {"first": ("Verified", "")}
    assert http.get("/readyz").status_code == 200
    answer = _ask(http, "first")
    assert answer.json()["choices"][0]["text"] == _greedy(pod, "r4")
    assert answer.headers["x-readapt-adapter"] == f"first@{pod.variants['r4']}"
    assert answer.headers["x-readapt-set"] == "rev-1"
    state = operator.state()
    assert (state.base, state.revision, state.ready, state.sequence) == (pod.base, "rev-1", True, 1)
    assert "cosine" in state.adapters[0].message


def test_probes_catch_inert_swapped_and_foreign_weights_alone(pod: Pod, http: httpx.Client, operator: Operator) -> None:
    wanted = pod.desired(good="r8", plain="r64", inert="inert", swapped="swapped", broken="broken", stranger="stranger")
    assert operator.push(wanted).status_code == 200
    assert operator.settled() == {
        "good": ("Verified", ""),
        "plain": ("Verified", ""),
        "inert": ("Failed", "ProbeMismatch"),
        "swapped": ("Failed", "ProbeMismatch"),
        "broken": ("Failed", "BadWeights"),
        "stranger": ("Failed", "WrongArtifact"),
    }
    assert _ask(http, "good").json()["choices"][0]["text"] == _greedy(pod, "r8")
    failed = _ask(http, "swapped")
    assert failed.status_code == 503
    assert failed.json()["error"]["code"] == "adapter_failed"
    assert "ProbeMismatch" in failed.json()["error"]["message"]
    assert _ask(http, "first").status_code == 404, "it is no longer in the set"
    assert http.get("/readyz").status_code == 200


def test_a_change_in_mid_answer_does_not_reach_it(pod: Pod, http: httpx.Client, operator: Operator) -> None:
    operator.push(pod.desired(a="r8"))
    assert _ask(http, "a").json()["choices"][0]["text"] == _greedy(pod, "r8")
    whole = _ask(http, "a", max_tokens=150, seed=1, temperature=1).json()["choices"][0]["text"]
    body = {"model": "a", "prompt": "Hello", "temperature": 1, "seed": 1, "max_tokens": 150, "stream": True}
    with http.stream("POST", "/v1/completions", json=body) as stream:
        assert stream.headers["x-readapt-adapter"] == f"a@{pod.variants['r8']}"
        assert operator.push(pod.desired(a="r64")).status_code == 200
        text = ""
        for line in stream.iter_lines():
            if line.startswith("data: {"):
                text += httpx.Response(200, content=line[6:]).json()["choices"][0]["text"]
    assert text == whole
    after = _ask(http, "a")
    assert after.headers["x-readapt-adapter"] == f"a@{pod.variants['r64']}"
    assert after.json()["choices"][0]["text"] == _greedy(pod, "r64")


def test_lower_sequences_change_nothing_and_other_pods_sets_conflict(pod: Pod, operator: Operator) -> None:
    current = pod.desired(a="r8")
    operator.push(current)
    old = current.model_copy(update={"sequence": current.sequence - 1, "adapters": ()})
    assert PodState.model_validate(operator.push(old).json()).set_digest == current.digest
    for change in ({"revision": "rev-2"}, {"base": digest_of("another base")}):
        wrong = current.model_copy(update={"sequence": 10_000, **change})
        assert operator.push(wrong).status_code == 409
    assert operator.state().set_digest == current.digest


def test_the_watched_folder_is_applied_while_serving(pod: Pod, operator: Operator, http: httpx.Client) -> None:
    assert pod.options.set_dir is not None
    wanted = pod.desired(disk="r8")
    write_shards(pod.options.set_dir, wanted)
    assert until(lambda: operator.state().sequence == wanted.sequence, 20.0, 0.05)
    assert _ask(http, "disk").status_code == 200


def test_a_digest_that_is_not_in_the_store_waits_and_is_then_told(
    pod: Pod, running: Running, operator: Operator
) -> None:
    missing = digest_of("not in the store")
    operator.push(pod.desired(a="r8", ghost=missing))
    with httpx.Client(base_url=running.serving) as http:
        with pytest.raises(httpx.ReadTimeout):
            http.post("/v1/completions", json={"model": "ghost", "prompt": "x"}, timeout=0.3)
        assert _ask(http, "a").status_code == 200, "nobody else waits for it"
    ghost = next(a for a in operator.state().adapters if a.name == "ghost")
    assert (ghost.state, missing in ghost.message) == ("Pending", True)


@pytest.mark.parametrize(
    "path", ["/v1/state", "/v1/desired", "/v1/drain", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"]
)
def test_every_admin_path_needs_a_token(running: Running, operator: Operator, path: str) -> None:
    method = "GET" if path == "/v1/state" else "POST"
    refused = httpx.request(method, running.admin + path, json={})
    assert refused.status_code == 401
    assert not operator.state().draining


def test_a_pod_that_finds_no_set_becomes_ready_with_the_first_push(pod: Pod, tmp_path: Path) -> None:
    with serving(replace(pod.options, set_dir=tmp_path)) as server, httpx.Client(base_url=server.admin) as admin:
        assert httpx.get(f"{server.serving}/readyz").status_code == 503
        operator = Operator(admin)
        assert not operator.state().ready
        operator.push(pod.desired(late="r4"))
        operator.settled()
        assert httpx.get(f"{server.serving}/readyz").status_code == 200


def test_a_request_for_what_is_never_verified_is_told_at_its_deadline(pod: Pod, tmp_path: Path) -> None:
    limits = replace(LIMITS, request_s=0.3)
    with serving(replace(pod.options, set_dir=tmp_path, limits=limits)) as server:
        with httpx.Client(base_url=server.admin) as admin:
            Operator(admin).push(pod.desired(ghost=digest_of("not in the store")))
        answer = httpx.post(f"{server.serving}/v1/completions", json={"model": "ghost", "prompt": "x"}, timeout=20)
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
        assert "verified" in answer.json()["error"]["message"]


def test_an_adapter_under_the_name_of_the_base_fails_and_the_base_answers(
    pod: Pod, http: httpx.Client, operator: Operator
) -> None:
    operator.push(pod.desired(tiny="r4", other="r8"))
    assert operator.settled() == {"tiny": ("Failed", "NameConflict"), "other": ("Verified", "")}
    assert "x-readapt-adapter" not in _ask(http, "tiny").headers


def test_an_api_key_guards_answers_but_not_health(pod: Pod, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret\n")
    with serving(replace(pod.options, api_key_file=tmp_path / "key")) as server:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic secret"}):
            refused = httpx.get(f"{server.serving}/v1/models", headers=headers)
            assert (refused.status_code, refused.headers["x-readapt-set"]) == (401, "rev-1")
        allowed = httpx.get(f"{server.serving}/v1/models", headers={"authorization": "Bearer secret"})
        assert allowed.status_code == 200
        assert httpx.get(f"{server.serving}/healthz").status_code == 200


def test_api_keys_change_without_a_restart(pod: Pod, tmp_path: Path) -> None:
    """As a kubelet changes a Secret: a link is swapped."""
    for version, content in (("1", "old\n"), ("2", "# two for now\n\nold\nneü\n"), ("3", "neü"), ("4", " \n#\n")):
        (tmp_path / version).mkdir()
        (tmp_path / version / "api-key").write_text(content)
    mounted = tmp_path / "mounted"
    mounted.symlink_to("1")

    def accepted(server: Running) -> list[str]:
        asked = {key: {"authorization": f"Bearer {key}".encode()} for key in ("old", "neü", "# two for now")}
        return [
            key for key, h in asked.items() if httpx.get(f"{server.serving}/v1/models", headers=h).status_code == 200
        ]

    with serving(replace(pod.options, api_key_file=mounted / "api-key")) as server:
        assert accepted(server) == ["old"]
        for version, keys in (("2", ["old", "neü"]), ("3", ["neü"]), ("4", ["neü"]), ("5", ["neü"])):
            (tmp_path / "fresh").symlink_to(version)
            (tmp_path / "fresh").rename(mounted)
            assert accepted(server) == keys
