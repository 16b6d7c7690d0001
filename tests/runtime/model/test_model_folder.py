"""What a model folder may be: read exactly, or refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from readapt_runtime.lora_format import linear_shapes
from readapt_runtime.model.config import read_config
from readapt_runtime.model.family import UnsupportedModel
from readapt_runtime.model.decoder import _rotary_tables
from readapt_runtime.model.weights import load_weights
from readapt_runtime.safe_tensors import BadWeights
from readapt_testing.tiny_engine import CPU, Tiny, ask, run_to_idle

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
ROPES = {
    "default": {"rope_type": "default", "rope_theta": 1e4},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
    "llama3": LLAMA3,
    "yarn": YARN,
}


@pytest.fixture
def folder(tiny: Tiny, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny.base, tmp_path / "model"))


def _edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


REFUSED = {
    "another family": {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]},
    "attention bias": {"attention_bias": True},
    "mlp bias": {"mlp_bias": True},
    "activation": {"hidden_act": "gelu"},
    "dynamic rope": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
    "quantized": {"quantization_config": {"quant_method": "bitsandbytes"}},
}


@pytest.mark.parametrize("change", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_implemented_is_refused(folder: Path, change: dict[str, object]) -> None:
    _edit(folder, **change)
    with pytest.raises(UnsupportedModel, match="not supported"):
        read_config(folder)


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel):
        read_config(tmp_path)


@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES.keys())
def test_rotary_tables_are_those_of_transformers(folder: Path, rope: dict[str, object]) -> None:
    _edit(folder, rope_parameters=rope)
    config = read_config(folder)
    cos, sin = _rotary_tables(config, 100, torch.empty(0))
    reference = LlamaRotaryEmbedding(LlamaConfig.from_pretrained(folder))
    expected = reference(torch.empty(0), torch.arange(100)[None])
    torch.testing.assert_close(cos[:, 0], expected[0][0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(sin[:, 0], expected[1][0], rtol=1e-6, atol=1e-6)


def test_module_shapes_are_those_that_adapters_are_checked_against(tiny: Tiny) -> None:
    raw = json.loads((tiny.base / "config.json").read_text())
    assert tiny.config.module_shapes == linear_shapes(raw)


def test_an_untied_sharded_model_answers_as_transformers_does(tmp_path: Path) -> None:
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=260,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=6,
        head_dim=12,
        initializer_range=0.3,
        tie_word_embeddings=False,
        eos_token_id=256,
        max_position_embeddings=512,
        rope_parameters=LLAMA3,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    tiny = Tiny(tmp_path, {})
    engine = tiny.engine()
    prompt = [7, 8, 9, 10] * 20
    _, answer = ask(engine, prompt, max_tokens=20)
    run_to_idle(engine)
    tiny.oracle.assert_greedy(None, prompt, answer.tokens, 20)


def _damage(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors[name]
    if tensor is not None:
        tensors[name] = tensor
    save_file(tensors, path, metadata={"format": "pt"})


DAMAGE = {
    "missing": None,
    "wrong shape": torch.zeros(64, 63),
    "not finite": torch.full((64, 64), float("nan")),
}


@pytest.mark.parametrize("tensor", DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_weights_are_refused_by_name(folder: Path, tensor: torch.Tensor | None) -> None:
    name = "model.layers.1.self_attn.q_proj.weight"
    _damage(folder, name, tensor)
    with pytest.raises(BadWeights, match=r"layers\.1\.self_attn\.q_proj"):
        load_weights(folder, read_config(folder), torch.float32, CPU)


def test_bfloat16_stays_near_float32(tiny: Tiny) -> None:
    """The serving dtype is reached tensor by tensor; values are those of transformers' own conversion."""
    weights = load_weights(tiny.base, tiny.config, torch.bfloat16, CPU)
    reference = AutoModelForCausalLM.from_pretrained(tiny.base, dtype=torch.bfloat16)
    assert torch.equal(weights.embedding, reference.model.embed_tokens.weight)
    gate_up = next(v for k, v in weights.layers[0].linears.items() if k == "gate_up")
    mlp = reference.model.layers[0].mlp
    assert torch.equal(gate_up, torch.cat((mlp.gate_proj.weight, mlp.up_proj.weight)))
