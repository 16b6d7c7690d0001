"""Fetching what users bring, whole and damaged."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from readapt_api.artifacts import ArtifactKind, Origin, Probe
from readapt_api.digest import digest_path, hash_file, list_source, variant_digest
from readapt_api.jobs import FetchRequest, FetchRole, FetchSource
from readapt_runtime.jobs.fetch import source as fetch_source
from readapt_runtime.probe import candidate_prompts, record
from readapt_testing.tiny_families import FAMILIES, write_family, write_lora
from readapt_testing.tiny_llama import Oracle, write_adapter_folder, write_base

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
Make = Callable[..., FetchSource]


def fetched_base(bench: Any, source: Make, name: str = "v1") -> str:
    ended = bench.run(FetchRequest(role=FetchRole.BASE, sources=(source(name),)))
    assert ended.code == 0, ended.summary.message
    return ended.summary.fetch.digest


def test_a_base_is_published_under_the_digest_that_users_pin(bench: Any, source: Make, sources: Path) -> None:
    pinned = source("v1").model_copy(update={"digest": digest_path(sources / "v1")})
    ended = bench.run(FetchRequest(role=FetchRole.BASE, sources=(pinned,)))

    assert (ended.code, ended.summary.ok) == (0, True)
    found, model = ended.summary.fetch, AutoModelForCausalLM.from_pretrained(sources / "v1")
    assert found.digest == pinned.digest
    assert found.architecture.parameters == model.num_parameters()
    assert found.architecture.dtype == "float32"
    assert (found.architecture.num_layers, found.architecture.vocab_size) == (2, 260)
    artifact = bench.store.open(found.digest, verify=True)
    assert artifact.manifest.kind is ArtifactKind.BASE
    assert artifact.manifest.architecture == found.architecture


@pytest.mark.parametrize("family", ["qwen2", "qwen3 untied, biased, yarn", "mistral untied", "smollm3"])
def test_a_base_of_each_family_is_fetched_and_its_adapter_too(bench: Any, tmp_path: Path, family: str) -> None:
    base = write_family(tmp_path / "base", FAMILIES[family])
    adapter = write_lora(tmp_path / "adapter", base)
    ended = bench.run(FetchRequest(role=FetchRole.BASE, sources=(FetchSource(uri="pvc://m/base", path=str(base)),)))
    assert ended.code == 0, ended.summary.message
    model = AutoModelForCausalLM.from_pretrained(base)
    assert ended.summary.fetch.architecture.parameters == model.num_parameters()
    assert ended.summary.fetch.architecture.model_type == FAMILIES[family]["model_type"]
    sources = (FetchSource(uri="pvc://m/adapter", path=str(adapter)),)
    ended = bench.run(FetchRequest(role=FetchRole.ADAPTER, sources=sources, base=ended.summary.fetch.digest))
    assert ended.code == 0, ended.summary.message


@pytest.mark.parametrize(
    "name", ["model.layers.1.self_attn.q_proj.bias", "model.layers.1.self_attn.o_proj.bias"], ids=["lacking", "extra"]
)
def test_biases_other_than_the_familys_are_refused(bench: Any, tmp_path: Path, name: str) -> None:
    base = write_family(tmp_path / "base", FAMILIES["qwen2"])
    edit(lambda t: t.pop(name) if name in t else t.update({name: torch.ones(48)}))(base)
    ended = bench.run(FetchRequest(role=FetchRole.BASE, sources=(FetchSource(uri="pvc://m/base", path=str(base)),)))
    assert (ended.code, ended.summary.reason) == (64, "BadWeights")
    assert name in ended.summary.message


def test_a_wrong_digest_is_shown_beside_the_right_one(bench: Any, source: Make, sources: Path) -> None:
    wrong = "sha256:" + "1" * 64
    pinned = source("v1").model_copy(update={"digest": wrong})
    ended = bench.run(FetchRequest(role=FetchRole.BASE, sources=(pinned,)))
    assert (ended.code, ended.summary.ok, ended.summary.reason) == (64, False, "WrongDigest")
    assert wrong in ended.summary.message
    assert digest_path(sources / "v1") in ended.summary.message


def test_a_missing_source_is_named(bench: Any) -> None:
    nothing = FetchSource(uri="pvc://models/v9", path=str(bench.folder / "v9"))
    ended = bench.run(FetchRequest(role=FetchRole.BASE, sources=(nothing,)))
    assert (ended.code, ended.summary.reason) == (64, "MissingSource")
    assert "pvc://models/v9" in ended.summary.message


def edit(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def configure(**options: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | options))

    return damage


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


NORM = "model.norm.weight"
DAMAGED_BASES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (truncate, "truncated"),
    "NaN": (edit(lambda t: t[NORM].fill_(float("nan"))), "NaN"),
    "a hole of zeros": (edit(lambda t: t["model.layers.0.mlp.up_proj.weight"].zero_()), "nothing but zeros"),
    "a missing tensor": (edit(lambda t: t.pop(NORM)), "the weights lack it"),
    "an extra tensor": (edit(lambda t: t.update(extra=torch.ones(2))), "the config has no such tensor"),
    "another shape": (edit(lambda t: t.update({NORM: torch.ones(65)})), r"shape [65], the config wants [64]"),
    "pickle only": (pickle_only, "pickle, which is never read"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json"),
    "no tokenizer": (lambda f: [p.unlink() for p in f.glob("*token*")], "tokenizer"),
    "code of its own": (configure(auto_map={"AutoModel": "model.Evil"}), "never run"),
    "another family": (configure(model_type="gpt2"), "gpt2"),
    "more layers than weights": (configure(num_hidden_layers=3), "the weights lack it"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGED_BASES.values(), ids=DAMAGED_BASES.keys())
def test_a_damaged_base_is_refused_and_leaves_nothing(
    bench: Any, source: Make, damage: Callable[[Path], Any], message: str
) -> None:
    broken = source("v1", copy=True)
    damage(Path(broken.path))
    ended = bench.run(FetchRequest(role=FetchRole.BASE, sources=(broken,)))
    assert ended.code == 64, ended.summary.message
    assert message in ended.summary.message
    assert not list(bench.store.root.glob("artifacts/*"))
    assert not [p for p in bench.store.root.glob("tmp/*") if not p.name.startswith(".")]


def test_a_source_that_changes_while_it_is_read_is_tried_again(
    bench: Any, source: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody replaces the weights after they were hashed and before they are copied."""
    moving = source("v1", copy=True)
    copy_file = fetch_source._copy_file

    def replaced(path: Path, target: Path, entry: Any) -> None:
        if path.name == "model.safetensors":
            path.write_bytes(path.read_bytes()[:-1] + b"!")
        copy_file(path, target, entry)

    monkeypatch.setattr(fetch_source, "_copy_file", replaced)
    ended = bench.run(FetchRequest(role=FetchRole.BASE, sources=(moving,)))
    assert (ended.code, ended.summary.reason) == (75, "SourceChanged")
    assert not list(bench.store.root.glob("artifacts/*"))


def test_a_source_is_read_again_each_time(bench: Any, source: Make) -> None:
    moving = source("v1", copy=True)
    request = FetchRequest(role=FetchRole.BASE, sources=(moving,))
    first = bench.run(request).summary.fetch
    edit(lambda t: t[NORM].mul_(2))(Path(moving.path))
    second = bench.run(request).summary.fetch
    assert first.input_hash == second.input_hash
    assert first.digest != second.digest == digest_path(Path(moving.path))


def test_a_checkpoint_must_fit_its_base(bench: Any, source: Make, tmp_path: Path) -> None:
    base = fetched_base(bench, source)
    fits = bench.run(FetchRequest(role=FetchRole.CHECKPOINT, sources=(source("checkpoint"),), base=base))
    assert fits.code == 0
    assert bench.store.open(fits.summary.fetch.digest).manifest.kind is ArtifactKind.CHECKPOINT

    deeper = FetchSource(uri="pvc://models/deeper", path=str(write_base(tmp_path / "deeper", layers=3)))
    ended = bench.run(FetchRequest(role=FetchRole.CHECKPOINT, sources=(deeper,), base=base))
    assert (ended.code, ended.summary.reason) == (64, "DoesNotFit")
    assert "num_layers is 3, its base's is 2" in ended.summary.message


def test_an_adapter_becomes_a_native_variant_with_a_probe(bench: Any, source: Make, sources: Path) -> None:
    base = fetched_base(bench, source)
    ended = bench.run(FetchRequest(role=FetchRole.ADAPTER, sources=(source("adapter"),), base=base))
    found = ended.summary.fetch

    entries = [hash_file(path, name) for name, path in list_source(sources / "adapter")]
    assert found.digest == digest_path(sources / "adapter")
    assert found.variant == variant_digest(base, entries)
    artifact = bench.store.open(found.variant, verify=True)
    manifest = artifact.manifest
    assert (manifest.kind, manifest.base, manifest.rank) == (ArtifactKind.VARIANT, base, 4)
    assert (manifest.provenance.origin, manifest.provenance.source) == (Origin.NATIVE, found.digest)

    probe = Probe.model_validate_json((artifact.path / "probe.json").read_bytes())
    assert len(probe.prompts) == 4
    oracle = Oracle(sources / "v1")
    for prompt in probe.prompts:
        assert 4 <= len(prompt.token_ids) <= 64
        tokens = list(prompt.token_ids)
        shift = oracle.log_probs(sources / "adapter", tokens) - oracle.log_probs(None, tokens)
        assert set(prompt.top_ids) == set(shift.abs().topk(32).indices.tolist())
        torch.testing.assert_close(
            torch.tensor(prompt.shift, dtype=torch.float64), shift[list(prompt.top_ids)], rtol=1e-3, atol=1e-4
        )

    again = bench.run(FetchRequest(role=FetchRole.ADAPTER, sources=(source("adapter"),), base=base))
    assert again.summary.fetch == found


def test_recording_a_probe_leaves_the_base_as_it_was(sources: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(sources / "v1", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(sources / "v1")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    prompts = candidate_prompts(tokenizer, ["A text of the adapter's own data"])
    probes = [record(model, sources / "adapter", prompts) for _ in range(2)]
    assert probes[0] == probes[1]
    assert prompts[0] == tokenizer("A text of the adapter's own data").input_ids
    assert set(model.state_dict()) == set(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_adapter_above_the_rank_limit_is_refused_also_when_it_is_known(bench: Any, source: Make) -> None:
    base = fetched_base(bench, source)
    request = FetchRequest(role=FetchRole.ADAPTER, sources=(source("adapter"),), base=base)
    assert bench.run(request).code == 0
    ended = bench.run(request.model_copy(update={"max_rank": 2}))
    assert ended.code == 64
    assert "rank 4 is above the allowed 2" in ended.summary.message


def test_an_adapter_of_another_base_is_refused_with_both_shapes(bench: Any, source: Make, tmp_path: Path) -> None:
    base = fetched_base(bench, source)
    deeper = write_base(tmp_path / "deeper", layers=3)
    adapter = write_adapter_folder(tmp_path / "other", deeper, rank=4, seed=2)
    wrong = FetchSource(uri="pvc://models/other", path=str(adapter))
    ended = bench.run(FetchRequest(role=FetchRole.ADAPTER, sources=(wrong,), base=base))
    assert ended.code == 64
    assert "the base has no linear module model.layers.2" in ended.summary.message


def test_an_adapter_that_changes_nothing_is_refused(bench: Any, source: Make) -> None:
    base = fetched_base(bench, source)
    inert = source("adapter", copy=True)
    path = Path(inert.path) / "adapter_model.safetensors"
    save_file({n: t * (0 if "lora_B" in n else 1) for n, t in load_file(path).items()}, path)
    ended = bench.run(FetchRequest(role=FetchRole.ADAPTER, sources=(inert,), base=base))
    assert (ended.code, ended.summary.reason) == (64, "InertAdapter")


def _scaled(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    save_file({n: t * 1e18 for n, t in load_file(path).items()}, path)


def _with_alpha(folder: Path) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": 1e38}))


@pytest.mark.parametrize("overflow", [_scaled, _with_alpha], ids=["weights", "alpha"])
def test_an_adapter_that_overflows_is_refused(bench: Any, source: Make, overflow: Callable[[Path], None]) -> None:
    base = fetched_base(bench, source)
    wild = source("adapter", copy=True)
    overflow(Path(wild.path))
    ended = bench.run(FetchRequest(role=FetchRole.ADAPTER, sources=(wild,), base=base))
    assert (ended.code, ended.summary.reason) == (64, "NonFiniteAnswers")
    assert ended.summary.message == "the adapter makes the base answer NaN or infinity"


def data_request(*sources: FetchSource) -> FetchRequest:
    return FetchRequest(role=FetchRole.DATA, sources=sources, prompt_field="text", completion_field="label")


def test_data_is_stored_under_one_pair_of_keys(bench: Any, source: Make) -> None:
    splits = tuple(source(f"{name}.jsonl", name) for name in ("train", "validation", "test"))
    ended = bench.run(data_request(*splits))
    found = ended.summary.fetch
    assert found.samples == {"train": 30, "validation": 40, "test": 240}
    folder = bench.store.open(found.digest, verify=True).path
    assert found.digest == digest_path_of_data(folder)
    first = json.loads((folder / "train.jsonl").read_text().splitlines()[0])
    assert first == {"prompt": "train question 0:", "completion": " yes"}


def test_inputs_are_stored_without_what_else_their_lines_hold(bench: Any, source: Make) -> None:
    for splits in (("inputs",), ("train", "validation", "test", "inputs")):
        given = [source("train.jsonl" if name == "inputs" else f"{name}.jsonl", name) for name in splits]
        ended = bench.run(data_request(*given))
        assert ended.code == 0, ended.summary.message
        assert ended.summary.fetch.samples["inputs"] == 30
        folder = bench.store.open(ended.summary.fetch.digest, verify=True).path
        first = json.loads((folder / "inputs.jsonl").read_text().splitlines()[0])
        assert first == {"prompt": "train question 0:"}


@pytest.mark.parametrize("splits", [("train", "inputs"), ("test", "inputs"), ("train", "validation", "more")], ids=str)
def test_splits_that_do_not_go_together_are_refused(bench: Any, source: Make, splits: tuple[str, ...]) -> None:
    ended = bench.run(data_request(*(source("train.jsonl", name) for name in splits)))
    assert (ended.code, ended.summary.reason) == (64, "BadData")
    assert "train and validation" in ended.summary.message


def digest_path_of_data(folder: Path) -> str:
    from readapt_api.digest import source_digest

    return source_digest(hash_file(p, p.name) for p in folder.glob("*.jsonl"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 3: not JSON"),
        ("[1]", "line 3: not a JSON object"),
        ('{"text": "x"}', "line 3: needs a text under 'label'"),
        ('{"text": "x", "label": 3}', "line 3: needs a text under 'label'"),
        ('{"text": "x", "label": " "}', "line 3: needs a text under 'label'"),
        ('{"text": "\\ud800", "label": "y"}', "line 3: 'text' holds half a surrogate pair"),
        ("[" * 100_000, "line 3: not JSON"),
    ],
    ids=["cut", "array", "no label", "number", "blank", "surrogate", "deep"],
)
def test_a_bad_line_is_named_by_its_number(bench: Any, source: Make, line: str, message: str) -> None:
    train = source("train.jsonl", "train", copy=True)
    lines = Path(train.path).read_text().splitlines()
    Path(train.path).write_text("\n".join([*lines[:2], line, *lines[2:]]))
    ended = bench.run(data_request(train, source("validation.jsonl", "validation")))
    assert (ended.code, ended.summary.reason) == (64, "BadData")
    assert message in ended.summary.message


def test_data_needs_train_and_validation(bench: Any, source: Make) -> None:
    ended = bench.run(data_request(source("train.jsonl", "train"), source("test.jsonl", "test")))
    assert ended.code == 64
    assert "train and validation" in ended.summary.message


def test_a_link_out_of_the_source_is_refused(bench: Any, source: Make) -> None:
    leaking = source("v1", copy=True)
    os.symlink("/etc/hostname", Path(leaking.path) / "hostname")
    ended = bench.run(FetchRequest(role=FetchRole.BASE, sources=(leaking,)))
    assert (ended.code, ended.summary.reason) == (64, "BadPath")
