"""The config of a decoder: what a model folder says, checked, in the few numbers that execution needs.

In: ``config.json`` of a Hugging Face folder. Out: ``DecoderConfig`` for weights, decoder, pool and adapter images.
What is not implemented is refused by name, here and in ``family``, and never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from readapt_runtime.model.family import (
    Dimensions,
    Document,
    UnsupportedModel,
    family_of,
    read_dimensions,
    read_document,
)
from readapt_runtime.model.rotary import Rotary, read_rotary


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
    bias: bool = False
    """Whether each of the modules has a bias."""

    @property
    def out_features(self) -> int:
        return sum(s.size for s in self.slices)


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
    rotary_layers: tuple[bool, ...]
    """Per layer whether positions rotate q and k; SmolLM3 leaves every fourth layer without."""
    biased: frozenset[Linear]
    """The linears whose modules have biases."""
    qk_norm: bool
    """RMS norm over each head of q and k before the rotation (Qwen3)."""
    sliding_window: int | None
    """Tokens that a layer attends to, itself included, where some layer does not see all; see ``require_length``."""

    @property
    def linears(self) -> dict[Linear, FusedLinear]:
        """The fused linears of a layer with their slices in output order."""
        q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        hidden, inner = self.hidden_size, self.intermediate_size
        modules = {
            Linear.QKV: (hidden, {"self_attn.q_proj": q, "self_attn.k_proj": kv, "self_attn.v_proj": kv}),
            Linear.O: (q, {"self_attn.o_proj": hidden}),
            Linear.GATE_UP: (hidden, {"mlp.gate_proj": inner, "mlp.up_proj": inner}),
            Linear.DOWN: (inner, {"mlp.down_proj": hidden}),
        }
        return {linear: _fuse(*sizes, bias=linear in self.biased) for linear, sizes in modules.items()}

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

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that is computed exactly."""
        return min(self.max_positions, self.sliding_window or self.max_positions)

    def require_length(self, max_model_len: int) -> None:
        """Raises UnsupportedModel where a sliding window is shorter than the longest sequence.

        The token at position p attends to the positions above p - window (transformers, Mistral's paper): with at
        most ``window`` tokens that is all of them, and full attention, which is what there is, computes the same.
        """
        if self.sliding_window is not None and max_model_len > self.sliding_window:
            raise UnsupportedModel(
                f"not supported: sliding_window={self.sliding_window} with sequences of up to {max_model_len} tokens; "
                f"a maximum model length of {self.sliding_window} or less is exact"
            )


def _fuse(in_features: int, modules: Mapping[str, int], bias: bool) -> FusedLinear:
    slices, start = [], 0
    for name, size in modules.items():
        slices.append(Slice(name, start, size))
        start += size
    return FusedLinear(in_features, tuple(slices), bias)


def read_config(folder: Path) -> DecoderConfig:
    """The checked config of the model folder; raises UnsupportedModel with the field that is in the way."""
    document = read_document(folder)
    return _decoder(transformers_config(folder), document, read_dimensions(document))


def transformers_config(folder: Path) -> Any:
    """With the defaults of the family's class filled in and rope parameters in one form. Raises UnsupportedModel."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except StrictDataclassError as error:
        raise UnsupportedModel(f"{folder}/config.json: {_one_line(error.__cause__ or error)}") from error
    except (ValueError, LookupError, ArithmeticError, OSError, TypeError, AttributeError) as error:
        raise UnsupportedModel(f"{folder}/config.json: {_one_line(error)}") from error


def _epsilon(raw: Any) -> float:
    found = float(raw.rms_norm_eps)
    if not 0 <= found < 1:
        raise UnsupportedModel(f"not supported: rms_norm_eps={raw.rms_norm_eps!r}")
    return found


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:400]


def _decoder(raw: Any, document: Document, dimensions: Dimensions) -> DecoderConfig:
    return DecoderConfig(
        model_type=raw.model_type,
        hidden_size=dimensions.hidden_size,
        intermediate_size=dimensions.intermediate_size,
        num_layers=dimensions.num_layers,
        num_heads=dimensions.num_heads,
        num_kv_heads=dimensions.num_kv_heads,
        head_dim=dimensions.head_dim,
        vocab_size=raw.vocab_size,
        max_positions=raw.max_position_embeddings,
        rms_norm_eps=_epsilon(raw),
        tied_embeddings=bool(raw.tie_word_embeddings),
        rotary=read_rotary(raw, dimensions.head_dim),
        rotary_layers=_rotary_layers(raw, dimensions.num_layers),
        biased=_biased(document),
        qk_norm=family_of(document).qk_norm,
        sliding_window=_sliding_window(raw),
    )


def _biased(document: Document) -> frozenset[Linear]:
    family = family_of(document)
    found = {Linear.QKV} if family.qkv_bias else set()
    if family.attention_bias and document.get("attention_bias"):
        found |= {Linear.QKV, Linear.O}
    if family.mlp_bias and document.get("mlp_bias"):
        found |= {Linear.GATE_UP, Linear.DOWN}
    return frozenset(found)


def _sliding_window(raw: Any) -> int | None:
    """Mistral's holds for all layers; elsewhere ``layer_types`` says which, and transformers leaves it out when off."""
    if raw.model_type == "mistral":
        sliding = raw.sliding_window is not None
    else:
        sliding = raw.model_type != "llama" and "sliding_attention" in (raw.layer_types or ())
    if not sliding:
        return None
    if type(raw.sliding_window) is not int or raw.sliding_window < 1:
        raise UnsupportedModel(f"not supported: sliding attention with sliding_window={raw.sliding_window!r}")
    return int(raw.sliding_window)


def _rotary_layers(raw: Any, num_layers: int) -> tuple[bool, ...]:
    layers = raw.no_rope_layers if raw.model_type == "smollm3" else [1] * num_layers
    if len(layers) < num_layers:
        raise UnsupportedModel(f"not supported: no_rope_layers of {len(layers)} for {num_layers} layers")
    return tuple(bool(rotates) for rotates in layers[:num_layers])
