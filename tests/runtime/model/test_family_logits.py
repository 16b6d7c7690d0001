"""Every family through the paged engine, prompts in chunks and tokens one by one: transformers' logits, in float32."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from readapt_runtime.engine.limits import EngineLimits
from readapt_runtime.lora_format import linear_shapes
from readapt_runtime.model.config import read_config
from readapt_testing.tiny_engine import Tiny
from readapt_testing.tiny_families import (
    FAMILIES,
    Reference,
    answer_and_logits,
    write_family,
    write_lora,
)

TOLERANCE = {"rtol": 1e-5, "atol": 1e-4}
"""Measured: at most 2e-5, on logits of up to 9."""
CHUNKED = EngineLimits(max_batch_tokens=48, max_running=8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@pytest.fixture(params=FAMILIES, ids=lambda name: name)
def tiny(request: pytest.FixtureRequest, folders: Path) -> Tiny:
    """A base of the family and an adapter on all of its linear modules."""
    folder = folders / request.param
    if not folder.exists():
        write_family(folder / "base", FAMILIES[request.param])
        write_lora(folder / "adapter", folder / "base")
    return Tiny(folder / "base", {"adapter": folder / "adapter"})


def prompts(*lengths: int) -> list[tuple[int, ...]]:
    rng = random.Random(len(lengths))
    return [tuple(rng.randrange(256) for _ in range(length)) for length in lengths]


def test_logits_are_those_of_transformers_and_peft(tiny: Tiny) -> None:
    """Base and adapter rows in the same steps; one prompt longer than a step, yarn's and llama3's original length."""
    variant = tiny.variant("adapter")
    asked = dict.fromkeys(prompts(90, 17, 1)) | dict.fromkeys(prompts(33, 5), variant)
    found = answer_and_logits(tiny, asked, 12, CHUNKED)
    references = {None: Reference(tiny.base), variant: Reference(tiny.base, tiny.adapters["adapter"])}
    for prompt, (answer, logits) in found.items():
        expected = references[asked[prompt]].logits(prompt, answer)
        torch.testing.assert_close(logits, expected, **TOLERANCE)


def test_linear_modules_are_those_of_the_model(tiny: Tiny) -> None:
    linear = {
        name: tuple(module.weight.shape)
        for name, module in AutoModelForCausalLM.from_pretrained(tiny.base).named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    assert tiny.config.module_shapes == linear
    assert linear_shapes(json.loads((tiny.base / "config.json").read_text())) == linear


@pytest.mark.parametrize(
    ("model_type", "absent"),
    [(t, k) for t in ("llama", "mistral", "qwen2", "qwen3", "smollm3") for k in ("num_key_value_heads", "head_dim")],
)
def test_what_a_config_leaves_out_is_what_transformers_assumes(tmp_path: Path, model_type: str, absent: str) -> None:
    config: dict[str, Any] = {"model_type": model_type, "hidden_size": 256, "intermediate_size": 64}
    config |= {"num_attention_heads": 32, "num_key_value_heads": 16, "head_dim": 6, "num_hidden_layers": 1}
    del config[absent]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    attention = model.model.layers[0].self_attn
    found = read_config(tmp_path)
    assert found.head_dim == attention.head_dim
    assert found.num_heads // found.num_kv_heads == attention.num_key_value_groups


PEFT_OPTIONS: dict[str, dict[str, Any]] = {
    "rank-stabilised": {"use_rslora": True, "r": 16},
    "ranks and alphas by pattern": {
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.down_proj": 7},
        "alpha_pattern": {r".*\.0\.self_attn\.k_proj": 3, "up_proj": 1},
    },
    "ranks by pattern, rank-stabilised": {"use_rslora": True, "rank_pattern": {"v_proj": 9}},
    "some layers": {"layers_to_transform": [0, 2]},
    "some layers by their pattern": {"layers_to_transform": 1, "layers_pattern": ["h", "layers"]},
    "a regular expression": {"target_modules": r".*layers\.[12]\.(self_attn\.[qo]_proj|mlp\.gate_proj)"},
    "all linear": {"target_modules": "all-linear"},
    "all linear but": {"target_modules": "all-linear", "exclude_modules": r".*\.(v|down)_proj"},
    "some modules": {"target_modules": ["k_proj", "model.layers.1.mlp.gate_proj"]},
}


@pytest.mark.parametrize("options", PEFT_OPTIONS.values(), ids=PEFT_OPTIONS.keys())
def test_options_of_an_adapter_mean_what_they_mean_to_peft(
    folders: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    """On a family with biases and norms around the adapted modules."""
    base = folders / "options"
    if not base.exists():
        write_family(base, FAMILIES["qwen3 untied, biased, yarn"])
    tiny = Tiny(base, {"adapter": write_lora(tmp_path / "adapter", base, **options)})
    (prompt,) = prompts(20)
    answer, logits = answer_and_logits(tiny, {prompt: tiny.variant("adapter")}, 6, CHUNKED)[prompt]
    expected = Reference(base, tiny.adapters["adapter"]).logits(prompt, answer)
    torch.testing.assert_close(logits, expected, **TOLERANCE)
    assert not torch.allclose(expected, Reference(base).logits(prompt, answer), atol=0.1)
