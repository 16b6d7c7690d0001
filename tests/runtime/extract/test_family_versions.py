"""Drift and extraction between two versions of a Qwen2 and of a Qwen3: biases and head norms go beside the factors."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from readapt_runtime.difference import DifferentModels
from readapt_runtime.drift import DRIFT_REPORT, measure, read_drift
from readapt_runtime.extract import RankPolicy, extract
from readapt_runtime.lora_format import linear_shapes
from readapt_runtime.model.family import UnsupportedModel
from readapt_runtime.progress import JsonLog
from readapt_testing.tiny_engine import Tiny
from readapt_testing.tiny_families import FAMILIES, Reference, write_family

LOG = JsonLog(io.StringIO())
RANK = 4
BESIDE = {
    "qwen2": {"model.layers.1.self_attn.k_proj.bias": "bias", "model.layers.0.input_layernorm.weight": "norm"},
    "qwen3": {"model.layers.1.self_attn.k_norm.weight": "norm", "model.layers.2.self_attn.q_norm.weight": "norm"},
    "qwen3 untied, biased, yarn": {"model.layers.0.self_attn.o_proj.bias": "bias", "lm_head.weight": "output head"},
}


@dataclass(frozen=True)
class Versions:
    """Two versions of a base: every linear module moved by rank 4, some tensors beside them by 0.1."""

    old: Path
    new: Path
    beside: dict[str, str]

    def tensors(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        old, new = (load_file(folder / "model.safetensors") for folder in (self.old, self.new))
        return old, new


@pytest.fixture(params=BESIDE, ids=lambda name: name)
def versions(request: pytest.FixtureRequest, tmp_path: Path) -> Versions:
    old, new = (write_family(tmp_path / name, FAMILIES[request.param]) for name in ("old", "new"))
    tensors = load_file(new / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    for name in shapes_of(old):
        out, into = tensors[f"{name}.weight"].shape
        left, right = torch.randn(out, RANK, generator=generator), torch.randn(RANK, into, generator=generator)
        tensors[f"{name}.weight"] += 0.05 * left @ right
    for name in BESIDE[request.param]:
        tensors[name] += 0.1
    save_file(tensors, new / "model.safetensors", metadata={"format": "pt"})
    return Versions(old, new, BESIDE[request.param])


def shapes_of(folder: Path) -> dict[str, Any]:
    return dict(linear_shapes(json.loads((folder / "config.json").read_text())))


def test_drift_is_the_dense_difference_and_names_what_moved_beside(versions: Versions, tmp_path: Path) -> None:
    summary = measure(versions.old, versions.new, tmp_path / "drift", LOG, rank=RANK)
    factors = read_drift(tmp_path / "drift")
    old, new = versions.tensors()
    assert factors.keys() == shapes_of(versions.old).keys()
    assert (summary.moved, summary.captured_energy) == (21, pytest.approx(1, abs=1e-5))
    for name, found in factors.items():
        delta = new[f"{name}.weight"] - old[f"{name}.weight"]
        torch.testing.assert_close(found.left @ found.right, delta, rtol=1e-3, atol=1e-4)
    rest = json.loads((tmp_path / "drift" / DRIFT_REPORT).read_text())["rest"]
    assert rest == {
        name: pytest.approx(float((new[name] - old[name]).norm() / old[name].norm()), rel=1e-5)
        for name in versions.beside
    }


def test_base_adapter_and_sidecar_together_are_the_checkpoint(versions: Versions, tmp_path: Path) -> None:
    """The base with the sidecar's tensors in it and the adapter beside it answers as the checkpoint does."""
    out = tmp_path / "out"
    report = extract(versions.old, versions.new, out, RankPolicy(fixed=8), LOG).report
    assert {name: entry.reason for name, entry in report.sidecar.items()} == versions.beside
    assert len(report.modules) == 21
    old, new = versions.tensors()
    sidecar = load_file(out / "sidecar.safetensors")
    assert all(torch.equal(sidecar[name], new[name]) for name in versions.beside)

    tokens, answer = tuple(range(30)), [1, 2, 3, 4]
    save_file(old | sidecar, versions.old / "model.safetensors", metadata={"format": "pt"})
    rebuilt = Reference(versions.old, out).logits(tokens, answer)
    torch.testing.assert_close(rebuilt, Reference(versions.new).logits(tokens, answer), rtol=1e-3, atol=1e-3)
    Tiny(versions.old, {"out": out}).variant("out")  # and it can be served


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"num_attention_heads": 8, "head_dim": 12}, "num_attention_heads is 4 and 8"),
        ({"model_type": "qwen2"}, "model_type is qwen3 and qwen2"),
        ({"attention_bias": True}, "attention_bias is False and True"),
    ],
    ids=["other heads", "other family", "biases"],
)
def test_two_models_of_equal_shapes_are_not_two_versions(tmp_path: Path, options: dict[str, Any], field: str) -> None:
    old = write_family(tmp_path / "old", FAMILIES["qwen3"])
    new = write_family(tmp_path / "new", FAMILIES["qwen3"])
    config = new / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | options))
    with pytest.raises(DifferentModels, match=field):
        measure(old, new, tmp_path / "drift", LOG)
    with pytest.raises(DifferentModels, match=field):
        extract(old, new, tmp_path / "out", RankPolicy(fixed=4), LOG)


def test_a_base_that_cannot_be_served_is_refused_before_any_work(tmp_path: Path) -> None:
    base = write_family(tmp_path / "base", FAMILIES["qwen2"])
    config = base / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"hidden_act": "gelu"}))
    with pytest.raises(UnsupportedModel, match="hidden_act='gelu'"):
        measure(base, base, tmp_path / "drift", LOG)
    assert not (tmp_path / "drift").exists()
