"""The config of a decoder: what a model folder says, checked, in the few numbers that execution needs.

In: ``config.json`` of a Hugging Face folder. Out: ``DecoderConfig`` for weights, decoder, pool and adapter images.
What is not implemented is refused here, by name, and never guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch

from readapt_api.errors import Terminal


class UnsupportedModel(Terminal):
    """A model folder that this runtime cannot execute exactly."""


class Linear(StrEnum):
    """The fused linear layers of one decoder layer."""

    QKV = "qkv"
    O = "o"  # noqa: E741 - the field's own name
    GATE_UP = "gate_up"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Slice:
    """One module of the checkpoint inside a fused linear: output columns ``[start, start + size)``."""

    module: str
    """Its name inside a layer, such as ``self_attn.q_proj``."""
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class FusedLinear:
    """Modules that read the same input, executed as one matrix product."""

    in_features: int
    slices: tuple[Slice, ...]

    @property
    def out_features(self) -> int:
        return sum(s.size for s in self.slices)


@dataclass(frozen=True, slots=True)
class Rotary:
    """Rotary position embedding: inverse frequencies ``[head_dim / 2]`` and the factor on cos and sin."""

    inv_freq: tuple[float, ...]
    attention_scaling: float


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """The numbers of a decoder-only transformer; widths in elements."""

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    rms_norm_eps: float
    tied_embeddings: bool
    rotary: Rotary

    @property
    def linears(self) -> dict[Linear, FusedLinear]:
        """The fused linears of a layer with their slices in output order."""
        q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        hidden, inner = self.hidden_size, self.intermediate_size
        return {
            Linear.QKV: _fuse(hidden, {"self_attn.q_proj": q, "self_attn.k_proj": kv, "self_attn.v_proj": kv}),
            Linear.O: _fuse(q, {"self_attn.o_proj": hidden}),
            Linear.GATE_UP: _fuse(hidden, {"mlp.gate_proj": inner, "mlp.up_proj": inner}),
            Linear.DOWN: _fuse(inner, {"mlp.down_proj": hidden}),
        }

    def module_name(self, layer: int, module: str) -> str:
        """The full name of a module in the checkpoint, without ``.weight``."""
        return f"model.layers.{layer}.{module}"

    @property
    def module_shapes(self) -> dict[str, tuple[int, int]]:
        """``(out, in)`` of every linear module that an adapter may touch, by its full name."""
        return {
            self.module_name(layer, part.module): (part.size, fused.in_features)
            for layer in range(self.num_layers)
            for fused in self.linears.values()
            for part in fused.slices
        }


def _fuse(in_features: int, modules: Mapping[str, int]) -> FusedLinear:
    slices, start = [], 0
    for name, size in modules.items():
        slices.append(Slice(name, start, size))
        start += size
    return FusedLinear(in_features, tuple(slices))


def read_config(folder: Path) -> DecoderConfig:
    """The checked config of the model folder; raises UnsupportedModel with the field that is in the way."""
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise UnsupportedModel(f"{folder}: no config.json")
    try:
        raw = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, OSError, TypeError) as error:
        raise UnsupportedModel(f"{folder}/config.json: {error}") from error
    return _llama(raw)


# Each check names what it refuses; None means that the config passes it.
_Check = Callable[[Any], str | None]
_LLAMA_CHECKS: tuple[_Check, ...] = (
    lambda c: None if c.model_type == "llama" else f"model_type {c.model_type!r} (this version serves 'llama')",
    lambda c: _unless(c, "hidden_act", "silu"),
    lambda c: _unless(c, "attention_bias", False),
    lambda c: _unless(c, "mlp_bias", False),
    lambda c: "quantized weights" if getattr(c, "quantization_config", None) else None,
)


def _unless(config: Any, field: str, expected: object) -> str | None:
    value = getattr(config, field, expected)
    return None if value == expected else f"{field}={value!r}"


def _llama(raw: Any) -> DecoderConfig:
    for check in _LLAMA_CHECKS:
        if refusal := check(raw):
            raise UnsupportedModel(f"not supported: {refusal}")
    if raw.num_attention_heads % raw.num_key_value_heads:
        raise UnsupportedModel(f"{raw.num_attention_heads} heads do not divide into {raw.num_key_value_heads} groups")
    return DecoderConfig(
        model_type=raw.model_type,
        hidden_size=raw.hidden_size,
        intermediate_size=raw.intermediate_size,
        num_layers=raw.num_hidden_layers,
        num_heads=raw.num_attention_heads,
        num_kv_heads=raw.num_key_value_heads,
        head_dim=raw.head_dim,
        vocab_size=raw.vocab_size,
        max_positions=raw.max_position_embeddings,
        rms_norm_eps=raw.rms_norm_eps,
        tied_embeddings=bool(raw.tie_word_embeddings),
        rotary=_rotary(raw),
    )


# Their frequencies do not depend on the length of the sequence; the other types' do ("dynamic", "longrope").
_STATIC_ROPE = frozenset({"linear", "llama3", "yarn"})


def _rotary(raw: Any) -> Rotary:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    kind = raw.rope_parameters["rope_type"]
    if kind == "default":
        exponents = torch.arange(0, raw.head_dim, 2, dtype=torch.float) / raw.head_dim
        return Rotary(tuple((1.0 / raw.rope_parameters["rope_theta"] ** exponents).tolist()), 1.0)
    if kind not in _STATIC_ROPE:
        raise UnsupportedModel(f"not supported: rope_type {kind!r}")
    inv_freq, scaling = ROPE_INIT_FUNCTIONS[kind](raw, torch.device("cpu"))
    return Rotary(tuple(inv_freq.tolist()), float(scaling))
