"""What a model folder may be: read exactly, or refused by name."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from readapt_runtime.lora_format import linear_shapes
from readapt_runtime.model.config import read_config
from readapt_runtime.model.family import UnsupportedModel
from readapt_runtime.model.ops import LinearOp, TorchOps
from readapt_runtime.model.rotary import rotary_tables
from readapt_runtime.model.weights import load_weights
from readapt_runtime.safe_tensors import BadWeights
from readapt_testing.tiny_engine import CPU, Tiny, ask, run_to_idle
from readapt_testing.tiny_families import LLAMA3

EMPTY = torch.empty(0)


class Kept(TorchOps):
    """Shows the weight of each product as its result."""

    def linear(self, weight: torch.Tensor, bias: torch.Tensor | None) -> LinearOp:
        return lambda x: weight


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
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


REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "another family": (
        {"model_type": "gpt2"},
        "model_type 'gpt2'; supported are llama, mistral, qwen2, qwen3, smollm3",
    ),
    "experts": ({"model_type": "mixtral"}, "model_type 'mixtral'"),
    "no family": ({"model_type": None}, "model_type None"),
    "attention bias of mistral": ({"model_type": "mistral", "attention_bias": True}, "attention_bias=True"),
    "mlp bias of qwen2": ({"model_type": "qwen2", "mlp_bias": True}, "mlp_bias=True"),
    "mlp bias of qwen3": ({"model_type": "qwen3", "mlp_bias": True}, "mlp_bias=True"),
    "activation": ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
    "dynamic rope": ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic'"),
    "long rope, as older configs say it": (
        {"rope_scaling": {"type": "longrope", "factor": 2.0}},
        "rope_type 'longrope'",
    ),
    "rope of half a head": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
    "rope of half a head, inside": (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        "partial_rotary_factor=0.5",
    ),
    "a rope per kind of layer": (
        {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
        "not one set of parameters for all layers",
    ),
    "quantized": ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantization_config"),
    "groups that do not divide": ({"num_key_value_heads": 3}, "4 heads do not divide into 3 groups"),
    "an odd head": ({"head_dim": 15}, "head_dim=15"),
    "no layers": ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    "more layers than memory": ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
    "a text for a number": ({"hidden_size": "64"}, "hidden_size is '64'"),
    "no key heads": ({"num_key_value_heads": 0}, "num_key_value_heads is 0"),
    "a head of nothing": ({"head_dim": 0}, "head_dim is 0"),
    "a negative vocabulary": ({"vocab_size": -1}, "vocab_size is -1"),
    "no vocabulary": ({"vocab_size": None}, "vocab_size is None"),
    "another text for a number": ({"vocab_size": "many"}, "vocab_size is 'many'"),
    "a negative context": ({"max_position_embeddings": -5}, "max_position_embeddings is -5"),
    "an endless context": ({"max_position_embeddings": 1 << 40}, "max_position_embeddings is 1099511627776"),
    "no theta": ({"rope_theta": None}, "rope_theta=None"),
    "no theta, inside": ({"rope_parameters": {"rope_type": "default", "rope_theta": None}}, "rope_theta=None"),
    "a theta of zero": ({"rope_parameters": {"rope_type": "default", "rope_theta": 0}}, "rope_theta=0"),
    "a beta in letters": ({"rope_parameters": {**YARN, "beta_fast": "x"}}, "rope_parameters: beta_fast='x'"),
    "a factor in letters": ({"rope_parameters": {**YARN, "factor": "x"}}, "factor='x'"),
}
ONLY_SERVING: dict[str, tuple[dict[str, object], str]] = {
    "an epsilon of nothing": ({"rms_norm_eps": None}, "Field 'rms_norm_eps' expected float, got NoneType"),
    "a dtype that is none": ({"dtype": "floaty"}, "floaty"),
    "rope in a list": ({"rope_parameters": []}, "Field 'rope_parameters'"),
    "yarn without its factor": ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "factor"),
    "a rope of zeros": ({"rope_parameters": {"rope_type": "default", "rope_theta": 0.0}}, "rope_theta=0.0"),
    "a factor of nothing": (
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 0}},
        "factor=0",
    ),
    "a window of nothing": (
        {"model_type": "qwen3", "layer_types": ["sliding_attention"] * 3, "use_sliding_window": False},
        "sliding_window=None",
    ),
    "fewer rotary flags than layers": ({"model_type": "smollm3", "no_rope_layers": [1]}, "config.json"),
    "fewer rotary flags than layers, known to be full": (
        {"model_type": "smollm3", "no_rope_layers": [1], "layer_types": ["full_attention"] * 3},
        "no_rope_layers of 1 for 3 layers",
    ),
}
"""Of no concern for what reads tensors only."""


@pytest.mark.parametrize(("change", "message"), (REFUSED | ONLY_SERVING).values(), ids=(REFUSED | ONLY_SERVING).keys())
def test_what_is_not_implemented_is_refused_by_name(folder: Path, change: dict[str, object], message: str) -> None:
    _edit(folder, **change)
    with pytest.raises(UnsupportedModel, match=re.escape(message)) as refused:
        read_config(folder)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_drift_extraction_and_adapters_refuse_the_same(folder: Path, change: dict[str, object], message: str) -> None:
    _edit(folder, **change)
    with pytest.raises(UnsupportedModel, match=re.escape(message)):
        linear_shapes(json.loads((folder / "config.json").read_text()))


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel):
        read_config(tmp_path)


@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES.keys())
def test_rotary_tables_are_those_of_transformers(folder: Path, rope: dict[str, object]) -> None:
    _edit(folder, rope_parameters=rope)
    config = read_config(folder)
    cos, sin = rotary_tables(config.rotary, 100, torch.empty(0))
    reference = LlamaRotaryEmbedding(LlamaConfig.from_pretrained(folder))
    expected = reference(torch.empty(0), torch.arange(100)[None])
    torch.testing.assert_close(cos, expected[0][0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(sin, expected[1][0], rtol=1e-6, atol=1e-6)


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


def _edit_tensors(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def _damage(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[name]
        if tensor is not None:
            tensors[name] = tensor

    _edit_tensors(folder, edit)


LAYER, ONE = "model.layers.0.self_attn", torch.ones(1)
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
        load_weights(folder, read_config(folder), torch.float32, CPU, Kept(1e-5))


def test_a_tensor_that_the_config_does_not_mention_is_refused(folder: Path) -> None:
    """A bias that the config denies would be missing from every answer."""
    name = "model.layers.0.self_attn.q_proj.bias"
    _edit_tensors(folder, lambda tensors: tensors.update({name: torch.ones(64)}))
    with pytest.raises(BadWeights, match=f"no place for the tensor {name}"):
        load_weights(folder, read_config(folder), torch.float32, CPU, Kept(1e-5))
    _edit_tensors(folder, lambda tensors: (tensors.pop(name), tensors.update({f"{LAYER}.rotary_emb.inv_freq": ONE})))
    load_weights(folder, read_config(folder), torch.float32, CPU, Kept(1e-5))


@pytest.mark.parametrize("equal", [True, False], ids=["equal", "other values"])
def test_a_tied_head_that_is_stored_is_what_transformers_makes_of_it(folder: Path, equal: bool) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + (0 if equal else 0.1)

    _edit_tensors(folder, edit)
    weights = load_weights(folder, read_config(folder), torch.float32, CPU, Kept(1e-5))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert torch.equal(weights.lm_head(EMPTY), model.lm_head.weight)
    assert (weights.lm_head(EMPTY) is weights.embedding) is equal


def test_values_that_the_serving_dtype_cannot_hold_are_refused(folder: Path) -> None:
    _damage(folder, "model.norm.weight", torch.full((64,), 1e30))
    load_weights(folder, read_config(folder), torch.bfloat16, CPU, Kept(1e-5))
    with pytest.raises(BadWeights, match=r"model\.norm\.weight as torch\.float16"):
        load_weights(folder, read_config(folder), torch.float16, CPU, Kept(1e-5))


def test_bfloat16_stays_near_float32(tiny: Tiny) -> None:
    """The serving dtype is reached tensor by tensor; values are those of transformers' own conversion."""
    weights = load_weights(tiny.base, tiny.config, torch.bfloat16, CPU, Kept(1e-5))
    reference = AutoModelForCausalLM.from_pretrained(tiny.base, dtype=torch.bfloat16)
    assert torch.equal(weights.embedding, reference.model.embed_tokens.weight)
    gate_up = next(v for k, v in weights.layers[0].linears.items() if k == "gate_up")
    mlp = reference.model.layers[0].mlp
    assert torch.equal(gate_up(EMPTY), torch.cat((mlp.gate_proj.weight, mlp.up_proj.weight)))
