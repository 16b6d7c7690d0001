"""vLLM's load and unload endpoints over a store and an adapter root, beside a desired set."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from readapt_api.artifacts import ADAPTER_WEIGHTS, ArtifactKind
from readapt_api.contract import Digest
from readapt_api.digest import digest_of
from readapt_api.serving import DesiredAdapter, DesiredSet, PodState
from readapt_cluster.waiting import until
from readapt_runtime.server.limits import Limits
from readapt_runtime.server.startup import BadOptions, Options
from readapt_runtime.store import Store
from readapt_testing.serving import Running, publish_variant, serving
from readapt_testing.tiny_engine import Tiny

LIMITS = Limits(max_model_len=256, pool_bytes=16 << 20, linger_s=0.2)
LOADED = "has already been loaded. If you want to load the adapter in place, set 'load_inplace' to True."


@dataclass
class Hand:
    """A pod and those who may change what it serves."""

    tiny: Tiny
    base: Digest
    variants: dict[str, Digest]
    running: Running
    admin: httpx.Client
    http: httpx.Client

    def load(self, name: str, path: str | None = None, **more: object) -> httpx.Response:
        given = {} if path is None else {"lora_path": self.variants.get(path, path)}
        return self.admin.post("/v1/load_lora_adapter", json={"lora_name": name, **given, **more})

    def unload(self, name: str, **more: object) -> httpx.Response:
        return self.admin.post("/v1/unload_lora_adapter", json={"lora_name": name, **more})

    def push(self, **adapters: str) -> None:
        """The next set: name=variant."""
        wanted = tuple(DesiredAdapter(name=n, digest=self.variants[v]) for n, v in adapters.items())
        sequence = self.state().sequence + 1
        desired = DesiredSet(sequence=sequence, revision="local", base=self.base, adapters=wanted)
        assert self.admin.post("/v1/desired", json=desired.to_wire()).status_code == 200

    def state(self) -> PodState:
        return PodState.model_validate(self.admin.get("/v1/state").json())

    def ask(self, model: str, **more: object) -> httpx.Response:
        body = {"model": model, "prompt": "Hello", "temperature": 0, "max_tokens": 10, **more}
        return self.http.post("/v1/completions", json=body)

    @property
    def held_bytes(self) -> int:
        """Of adapters on the host."""
        root = self.running.machinery.root
        assert root is not None
        return root.images.held_bytes

    def stored_bytes(self, variant: str) -> int:
        return (self.tiny.adapters[variant] / ADAPTER_WEIGHTS).stat().st_size

    def assert_answers_as(self, model: str, variant: str) -> None:
        """With the greedy answer of transformers and PEFT."""
        tokenizer: Any = AutoTokenizer.from_pretrained(self.tiny.base)
        tokens = self.tiny.oracle.greedy(self.tiny.adapters[variant], tokenizer("Hello")["input_ids"], 10)
        answer = self.ask(model)
        assert answer.json()["choices"][0]["text"] == tokenizer.decode(tokens, skip_special_tokens=True)


@pytest.fixture(scope="module")
def root(tiny: Tiny, broken_adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders r3 and r8, a broken one, a file, and links that lead out, up and round."""
    folder = tmp_path_factory.mktemp("adapters") / "root"
    shutil.copytree(tiny.adapters["r3"], folder / "r3")
    shutil.copytree(tiny.adapters["r8"], folder / "r8")
    shutil.copytree(broken_adapter, folder / "broken")
    (folder / "file").write_text("x")
    (folder / "out").symlink_to(tiny.adapters["r4"])
    (folder / "up").symlink_to("..")
    (folder / "self").symlink_to(".")
    leaky = folder / "leaky"
    leaky.mkdir()
    for file in tiny.adapters["r4"].iterdir():
        (leaky / file.name).symlink_to(file)
    return folder


@pytest.fixture(scope="module")
def stock(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Digest, dict[str, Digest]]:
    place = tmp_path_factory.mktemp("stock")
    store = Store(place / "store")
    base = store.publish(ArtifactKind.BASE, tiny.base).digest
    names = ("r4", "r8", "r64")
    variants = {n: publish_variant(store, tiny.adapters[n], base, None, place / n).digest for n in names}
    foreign = publish_variant(store, tiny.adapters["r4"], digest_of("another base"), None, place / "foreign")
    return store, base, {**variants, "foreign": foreign.digest}


@pytest.fixture
def hand(tiny: Tiny, root: Path, stock: tuple[Store, Digest, dict[str, Digest]]) -> Iterator[Hand]:
    store, base, variants = stock
    options = Options(
        base=store.open(base).path,
        served_name="tiny",
        port=0,
        admin_port=0,
        store=store.root,
        adapter_root=root,
        base_digest=base,
        limits=LIMITS,
    )
    with (
        serving(options) as running,
        httpx.Client(base_url=running.admin, timeout=30) as admin,
        httpx.Client(base_url=running.serving, timeout=30) as http,
    ):
        yield Hand(tiny, base, variants, running, admin, http)


def test_a_variant_of_the_store_is_loaded_and_unloaded_in_vllms_words(hand: Hand) -> None:
    assert hand.ask("mine").status_code == 404
    loaded = hand.load("mine", "r8")
    assert (loaded.status_code, loaded.text) == (200, "Success: LoRA adapter 'mine' added successfully.")
    assert "mine" in [m["id"] for m in hand.http.get("/v1/models").json()["data"]]
    assert hand.ask("mine").headers["x-readapt-adapter"] == f"mine@{hand.variants['r8']}"
    hand.assert_answers_as("mine", "r8")
    gone = hand.unload("mine", lora_int_id=1)
    assert (gone.status_code, gone.text) == (200, "Success: LoRA adapter 'mine' removed successfully.")
    assert hand.ask("mine").status_code == 404


def test_digest_and_path_may_both_name_the_variant(hand: Hand) -> None:
    assert hand.load("a", digest=hand.variants["r4"]).status_code == 200
    assert hand.load("a", "r4", digest=hand.variants["r4"], is_3d_lora_weight=False).status_code == 200
    assert hand.load("b", "r8", digest=hand.variants["r4"]).status_code == 400


def test_a_folder_of_the_root_is_loaded_by_its_name(hand: Hand) -> None:
    assert hand.load("three", "r3").status_code == 200
    hand.assert_answers_as("three", "r3")
    assert hand.load("three", "r3").status_code == 200, "the same again"
    assert hand.load("three", "r4", load_inplace=True).status_code == 200
    hand.assert_answers_as("three", "r4")


@pytest.mark.parametrize(
    "path",
    ["../r3", "/etc", "r3/../r8", "..", ".", "", "r3/", "a\x00b", "..%2fr3", "r3\n", "sha256:00", "~", "x" * 72],
    ids=repr,
)
def test_a_path_is_refused_whatever_it_leads_to(hand: Hand, path: str) -> None:
    answer = hand.load("x", path)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] in ("lora_path", None)


@pytest.mark.parametrize("name", ["out", "up", "self", "file", "nothing"])
def test_what_is_no_folder_inside_the_root_is_not_found(hand: Hand, name: str) -> None:
    assert hand.load("x", name).status_code == 404


@pytest.mark.parametrize("name", ["broken", "leaky", "foreign"])
def test_what_cannot_be_served_is_refused_with_the_reason_and_leaves_nothing(hand: Hand, name: str) -> None:
    answer = hand.load("x", name)
    assert answer.status_code == 400
    reasons = {"broken": "BadWeights", "leaky": "BadPath", "foreign": "WrongArtifact"}
    assert reasons[name] in answer.json()["error"]["message"]
    assert hand.ask("x").status_code == 404
    assert hand.state().adapters == ()


def test_errors_have_vllms_shape(hand: Hand) -> None:
    hand.load("a", "r4")
    again = hand.load("a", "r8")
    assert (again.status_code, again.json()["error"]["type"]) == (400, "InvalidUserInput")
    assert again.json()["error"]["message"] == f"The lora adapter 'a' {LOADED}"
    missing = hand.load("b", digest_of("not in the store"))
    assert (missing.status_code, missing.json()["error"]["type"]) == (404, "NotFoundError")
    unknown = hand.unload("b")
    assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "NotFoundError")
    assert unknown.json()["error"]["message"] == "The lora adapter 'b' cannot be found."
    nothing = hand.load("b")
    assert nothing.json()["error"]["message"] == "Both 'lora_name' and 'lora_path' must be provided."
    for wrong in ({"lora_path": 3}, {"load_inplace": "yes"}, {"is_3d_lora_weight": True}, {"base_model_name": "x"}):
        assert hand.admin.post("/v1/load_lora_adapter", json={"lora_name": "b", **wrong}).status_code == 400
    assert hand.load("tiny", "r4").status_code == 400, "the name of the base"


def test_what_was_loaded_by_hand_survives_set_changes(hand: Hand) -> None:
    hand.push(listed="r4")
    assert hand.load("mine", "r8").status_code == 200
    hand.push(other="r64")
    hand.push()
    hand.assert_answers_as("mine", "r8")
    assert hand.ask("listed").status_code == 404
    assert hand.unload("mine").status_code == 200


def test_a_name_of_the_set_is_neither_loaded_over_nor_unloaded(hand: Hand) -> None:
    hand.push(listed="r4")
    for refused in (hand.load("listed", "r8", load_inplace=True), hand.load("listed", "r4"), hand.unload("listed")):
        assert refused.status_code == 409
        assert "desired set" in refused.json()["error"]["message"]
    hand.assert_answers_as("listed", "r4")


@pytest.mark.parametrize("variant", ["r8", "r64"], ids=["same", "other"])
def test_a_set_that_claims_the_name_takes_it_over(hand: Hand, variant: str) -> None:
    hand.load("mine", "r8")
    hand.push(mine=variant)
    hand.assert_answers_as("mine", variant)
    assert hand.unload("mine").status_code == 409
    hand.push()
    assert hand.ask("mine").status_code == 404, "it goes with the set now"


def test_loading_in_place_makes_a_new_generation_and_the_old_one_finishes_its_answers(hand: Hand) -> None:
    hand.load("mine", "r8")
    body = {"model": "mine", "prompt": "Hello", "temperature": 1, "seed": 1, "max_tokens": 150}
    whole = hand.http.post("/v1/completions", json=body).json()["choices"][0]["text"]
    with hand.http.stream("POST", "/v1/completions", json={**body, "stream": True}) as stream:
        assert hand.load("mine", "r64", load_inplace=True).status_code == 200
        lines = [line[6:] for line in stream.iter_lines() if line.startswith("data: {")]
        assert stream.headers["x-readapt-adapter"] == f"mine@{hand.variants['r8']}"
    assert "".join(httpx.Response(200, text=line).json()["choices"][0]["text"] for line in lines) == whole
    hand.assert_answers_as("mine", "r64")


def test_an_unload_lets_running_answers_finish(hand: Hand) -> None:
    hand.load("mine", "r8")
    whole = hand.ask("mine", max_tokens=150).json()["choices"]
    body = {"model": "mine", "prompt": "Hello", "temperature": 0, "max_tokens": 150, "stream": True}
    with hand.http.stream("POST", "/v1/completions", json=body) as stream:
        assert hand.unload("mine").status_code == 200
        text = "".join(
            httpx.Response(200, text=line[6:]).json()["choices"][0]["text"]
            for line in stream.iter_lines()
            if line.startswith("data: {")
        )
    assert text == whole[0]["text"]
    assert hand.ask("mine").status_code == 404


def test_a_load_that_fails_in_place_leaves_the_old_one(hand: Hand) -> None:
    hand.load("mine", "r8")
    assert hand.load("mine", "broken", load_inplace=True).status_code == 400
    assert hand.load("mine", digest_of("not there"), load_inplace=True).status_code == 404
    hand.assert_answers_as("mine", "r8")


def test_what_is_loaded_waits_unpacked_until_it_is_asked(hand: Hand) -> None:
    hand.load("mine", "r8")
    hand.load("three", "r3")
    assert hand.held_bytes == hand.stored_bytes("r8") + hand.stored_bytes("r3")
    hand.assert_answers_as("mine", "r8")
    hand.assert_answers_as("three", "r3")
    hand.assert_answers_as("mine", "r8")


def test_what_is_replaced_or_unloaded_before_it_was_asked_leaves_nothing(hand: Hand) -> None:
    hand.load("mine", "r4")
    hand.load("other", "r8")
    assert hand.load("mine", "r64", load_inplace=True).status_code == 200
    assert hand.unload("other").status_code == 200
    assert until(lambda: hand.held_bytes == hand.stored_bytes("r64"), 30)
    hand.assert_answers_as("mine", "r64")
    assert hand.ask("other").status_code == 404
    hand.load("other", "r8")
    hand.assert_answers_as("other", "r8")


@pytest.mark.parametrize("fault", ["nan", "infinity", "zeros", "shape"])
def test_weights_that_cannot_be_served_are_refused_by_the_load_itself(hand: Hand, root: Path, fault: str) -> None:
    folder = root / f"bad-{fault}"
    shutil.copytree(root / "r8", folder)
    weights = load_file(folder / ADAPTER_WEIGHTS)
    last, first_a = max(weights), min(key for key in weights if ".lora_A." in key)
    match fault:
        case "nan":
            weights[last].view(-1)[-1] = float("nan")
        case "infinity":
            weights[last].view(-1)[-1] = float("-inf")
        case "zeros":
            weights[first_a].zero_()
        case "shape":
            weights[last] = weights[last][:-1].clone()
    save_file(weights, folder / ADAPTER_WEIGHTS)
    answer = hand.load("x", folder.name)
    assert answer.status_code == 400
    said = {"zeros": "nothing but zeros", "shape": "has shape"}.get(fault, "NaN or infinite values")
    assert said in answer.json()["error"]["message"]
    assert (hand.state().adapters, hand.held_bytes) == ((), 0)
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_bytes_that_changed_in_the_store_are_refused(
    hand: Hand, stock: tuple[Store, Digest, dict[str, Digest]], tmp_path: Path, name: str
) -> None:
    store = stock[0]
    variant = publish_variant(store, hand.tiny.adapters["r3"], hand.base, None, tmp_path / "copy")
    file = store.open(variant.digest).path / name
    content = bytearray(file.read_bytes())
    content[-1] ^= 0x20
    file.write_bytes(content)
    answer = hand.load("x", variant.digest)
    assert answer.status_code == 400
    assert "sha256" in answer.json()["error"]["message"] or "have changed" in answer.json()["error"]["message"]
    assert hand.held_bytes == 0
    shutil.rmtree(file.parent)


def test_of_concurrent_loads_of_one_name_one_wins_and_the_others_are_told(hand: Hand) -> None:
    statuses: list[int] = []

    def load(variant: str) -> None:
        path = {"lora_name": "mine", "lora_path": hand.variants[variant]}
        statuses.append(httpx.post(f"{hand.running.admin}/v1/load_lora_adapter", json=path, timeout=30).status_code)

    threads = [threading.Thread(target=load, args=(v,)) for v in ("r4", "r8", "r64")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(statuses) == [200, 400, 400]
    winner = next(n for n, d in hand.variants.items() if d == hand.state().adapters[0].digest)
    hand.assert_answers_as("mine", winner)


def test_without_a_root_only_digests_are_known(tiny: Tiny) -> None:
    with serving(Options(base=tiny.base, served_name="tiny", port=0, admin_port=0, limits=LIMITS)) as running:
        answer = httpx.post(f"{running.admin}/v1/load_lora_adapter", json={"lora_name": "a", "lora_path": "r8"})
        assert answer.status_code == 400
        assert "--adapter-root" in answer.json()["error"]["message"]
        body = {"lora_name": "a", "digest": digest_of("x")}
        assert httpx.post(f"{running.admin}/v1/load_lora_adapter", json=body).status_code == 404


def test_a_root_that_is_no_folder_is_refused_at_start(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(BadOptions, match="adapter-root"):
        Options(base=tiny.base, served_name="tiny", adapter_root=tmp_path / "none")
