"""Checkpoints that no adapter can come from: a clear message, exit code 64, nothing published."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from readapt_runtime.cli import run
from readapt_testing.damage import Damage, configured, tensors
from readapt_testing.tiny_families import FAMILIES, write_family
from readapt_testing.tiny_llama import write_base

Q = "model.layers.1.self_attn.q_proj.weight"
NORM = "model.layers.0.input_layernorm.weight"
EMBEDDING = "model.embed_tokens.weight"


def value_of(name: str, value: float) -> Damage:
    def put(found: dict[str, torch.Tensor]) -> None:
        found[name].view(-1)[3] = value

    return tensors(put)


def another(options: dict[str, Any] | None) -> Damage:
    def damage(folder: Path) -> None:
        shutil.rmtree(folder)
        if options is None:
            write_base(folder, layers=3)
        else:
            write_family(folder, options)

    return damage


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def quantised(dtype: torch.dtype) -> Damage:
    return tensors(lambda found: found.update({Q: torch.zeros(64, 64).to(dtype)}))


def lost_shard(folder: Path) -> None:
    found = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file({Q: found[Q]}, folder / "model-00001-of-00002.safetensors")
    weight_map = {name: f"model-0000{1 if name == Q else 2}-of-00002.safetensors" for name in found}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def index_of_another(folder: Path) -> None:
    found = load_file(folder / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys([*found, "other.weight"], "model.safetensors")})
    )


def an_adapter(folder: Path) -> None:
    for file in ("config.json", "model.safetensors"):
        (folder / file).unlink()
    (folder / "adapter_config.json").write_text("{}")


def two_more_tokens(found: dict[str, torch.Tensor]) -> None:
    found[EMBEDDING] = torch.cat([found[EMBEDDING], torch.ones(2, 64)])


def without_a_tokenizer(folder: Path) -> None:
    tensors(two_more_tokens)(folder)
    (folder / "tokenizer.json").unlink()


def with_half_a_tokenizer(folder: Path) -> None:
    tensors(two_more_tokens)(folder)
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0')


def out_of_range(found: dict[str, torch.Tensor]) -> None:
    found[Q] = torch.full((64, 64), 3e38)


BAD: dict[str, tuple[Damage, str]] = {
    "another shape": (
        tensors(lambda found: found.update({Q: torch.ones(32, 64)})),
        rf"DifferentModels: {Q}: shape [32, 64] in ",
    ),
    "another shape of a norm": (
        tensors(lambda found: found.update({NORM: torch.ones(65)})),
        f"DifferentModels: {NORM}: shapes [64] and [65] cannot be compared",
    ),
    "another width of the embedding": (
        tensors(lambda found: found.update({EMBEDDING: torch.ones(260, 65)})),
        f"DifferentModels: {EMBEDDING}: shapes [260, 64] and [260, 65] cannot be compared",
    ),
    "more layers": (another(None), "DifferentModels: config.json: num_hidden_layers is 2 and 3"),
    "another family": (another(FAMILIES["qwen3"]), "DifferentModels: config.json: model_type is llama and qwen3"),
    "the same weights cut into other heads": (
        configured("config.json", num_attention_heads=8, num_key_value_heads=4, head_dim=8),
        "DifferentModels: config.json: num_attention_heads is 4 and 8",
    ),
    "biases": (
        configured("config.json", attention_bias=True),
        "DifferentModels: config.json: attention_bias is False and True",
    ),
    "a config cut short": (lambda folder: (folder / "config.json").write_text("{"), "config.json: not the JSON"),
    "an adapter": (an_adapter, "no config.json (adapter_config.json is there: an adapter, not a model)"),
    "more tokens and no tokenizer": (
        without_a_tokenizer,
        "tokenizer.json: no such file, and without it nobody can tell which of 260 and 262 rows",
    ),
    "more tokens and half a tokenizer": (with_half_a_tokenizer, "tokenizer.json: not the JSON"),
    "a family that is not known": (configured("config.json", model_type="mamba"), "UnsupportedModel: "),
    "a linear module missing": (tensors(lambda found: found.pop(Q)), f"no tensor {Q}"),
    "a norm missing": (tensors(lambda found: found.pop(NORM)), f"no tensor {NORM}, which "),
    "NaN": (value_of(Q, float("nan")), f"{Q}: NaN or infinite values"),
    "infinity": (value_of(Q, float("-inf")), f"{Q}: NaN or infinite values"),
    "NaN in a norm": (value_of(NORM, float("nan")), f"{NORM}: NaN or infinite values"),
    "NaN in the embedding": (
        value_of(EMBEDDING, float("nan")),
        f"{EMBEDDING}: NaN or infinite values",
    ),
    "too far for float32": (tensors(out_of_range), "NotFinite: "),
    "quantised, says the config": (
        configured("config.json", quantization_config={"quant_method": "gptq"}),
        "UnsupportedModel: ",
    ),
    "quantised to int8": (quantised(torch.int8), f"{Q}: dtype I8; allowed are F32, F16, BF16 (quantised"),
    "quantised to fp8": (quantised(torch.float8_e4m3fn), f"{Q}: dtype F8_E4M3; allowed are F32, F16, BF16 (quantised"),
    "packed into int32": (quantised(torch.int32), f"{Q}: dtype I32; allowed are F32, F16, BF16 (quantised"),
    "cut short": (cut_short, "(truncated?)"),
    "a pickle": (pickled, "pytorch_model.bin is a pickle, which is never read"),
    "a shard missing": (lost_shard, "model-00002-of-00002.safetensors: no such file"),
    "an index that names more": (index_of_another, "disagree about tensor other.weight"),
    "no folder": (shutil.rmtree, "no such folder"),
    "nothing changed": (lambda folder: None, "NothingToExtract: none of 14 linear modules differs from the base"),
    "only a norm changed": (
        value_of(NORM, 2.0),
        f"none of 14 linear modules differs from the base; what differs, no adapter holds: {NORM}",
    ),
}


@pytest.fixture
def finetuned(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "finetuned"))


@pytest.mark.parametrize(("damage", "message"), BAD.values(), ids=BAD.keys())
def test_it_is_said_what_is_wrong_and_nothing_is_left(
    base: Path, finetuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Damage, message: str
) -> None:
    damage(finetuned)
    out = tmp_path / "out"
    command = ["extract", "--base", str(base), "--finetuned", str(finetuned), "--out", str(out), "--rank", "8"]
    assert run([*command, "--merged-base"]) == 64
    said = capsys.readouterr()
    assert said.out == ""
    assert [line for line in said.err.splitlines() if line.startswith("readapt: ") and message in line]
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (value_of(Q, float("nan")), f"base: {Q}: NaN or infinite values"),
        (tensors(lambda found: found.pop(Q)), f"base: no tensor {Q}"),
        (tensors(lambda found: found.pop(NORM)), f"base: no tensor {NORM}, which "),
        (tensors(lambda found: found.pop(EMBEDDING)), f"base: no tensor {EMBEDDING}, which "),
        (cut_short, "(truncated?)"),
        (shutil.rmtree, "base: no such folder"),
    ],
    ids=["NaN", "a linear module missing", "a norm missing", "no embedding", "cut short", "no folder"],
)
def test_what_is_wrong_with_the_base_is_said_of_the_base(
    base: Path, finetuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Damage, message: str
) -> None:
    broken = Path(shutil.copytree(base, tmp_path / "base"))
    damage(broken)
    out = tmp_path / "out"
    command = ["extract", "--base", str(broken), "--finetuned", str(finetuned), "--out", str(out), "--rank", "8"]
    assert run(command) == 64
    assert message in capsys.readouterr().err
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rank", "8", "--budget", "9"], "exactly one of a fixed rank, an energy, a relative error and a budget"),
        ([], "exactly one of a fixed rank, an energy, a relative error and a budget"),
        (["--rank", "65"], "rank 65 is not at least 1 and at most the maximum rank, 64"),
        (["--rank", "0"], "rank 0 is not at least 1"),
        (["--rank", "9999", "--max-rank", "9999"], "the maximum rank 9999 is not at least 1 and at most 512"),
        (["--energy", "90"], "energy 90.0 is not above 0 and at most 1"),
        (["--energy", "nan"], "energy nan is not above 0 and at most 1"),
        (["--relative-error", "1"], "relative error 1.0 is not above 0 and below 1"),
        (["--budget", "0"], "budget 0 is not at least 1"),
        (["--budget", "10"], "a budget of 10 parameters holds no module; the smallest takes 768"),
        (["--rank", "8", "--device", "tape"], "--device tape: "),
        (["--rank", "8", "--device", "cuda:77"], "--device cuda:77: "),
    ],
    ids=" ".join,
)
def test_options_that_ask_for_nothing_possible_are_said(
    base: Path, edited: Callable[..., Path], low_rank_change: Callable[..., Any], tmp_path: Path,
    capsys: pytest.CaptureFixture[str], options: list[str], message: str,
) -> None:  # fmt: skip
    finetuned, out = edited(low_rank_change(seed=1, rank=2)), tmp_path / "out"
    command = ["extract", "--base", str(base), "--finetuned", str(finetuned), "--out", str(out)]
    assert run([*command, *options]) == 64
    assert message in capsys.readouterr().err
    assert not out.exists() or list(out.iterdir()) == []
