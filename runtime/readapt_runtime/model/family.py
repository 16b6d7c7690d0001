"""The families of decoders that are served, and what ``config.json`` must say to be one of them.

In: the JSON object. Out: the family and the dimensions of its linear modules. Whatever executes a base, extracts from
it or adapts to it asks here first, so that an unsupported one is refused everywhere alike, by the field that is in the
way. Plain JSON: Jobs that only read tensors need no model library.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from readapt_api.artifacts import ADAPTER_CONFIG
from readapt_api.errors import Terminal
from readapt_runtime.safe_tensors import read_json_object

Document = Mapping[str, object]


class UnsupportedModel(Terminal):
    """A model folder that this runtime cannot execute exactly."""


@dataclass(frozen=True, slots=True)
class Family:
    """What transformers' class for a ``model_type`` does beyond the plain decoder, and the defaults of its config."""

    kv_heads: int | None = None
    """Where config.json has no ``num_key_value_heads``; None: as many as heads."""
    head_dim: int | None = None
    """Where config.json has no ``head_dim``; None: hidden size / heads."""
    qkv_bias: bool = False
    """Biases on q, k and v, whatever the config says."""
    attention_bias: bool = False
    """The config's ``attention_bias`` is obeyed: q, k, v and o."""
    mlp_bias: bool = False
    """The config's ``mlp_bias`` is obeyed: gate, up and down."""
    qk_norm: bool = False
    """RMS norm of each head of q and k, before the rotation."""


FAMILIES: Mapping[str, Family] = {
    "llama": Family(attention_bias=True, mlp_bias=True),
    "mistral": Family(kv_heads=8),
    "qwen2": Family(kv_heads=32, qkv_bias=True),
    "qwen3": Family(kv_heads=32, head_dim=128, attention_bias=True, qk_norm=True),
    "smollm3": Family(kv_heads=4, attention_bias=True, mlp_bias=True),
}
"""By ``model_type``. SmolLM and SmolLM2 are ``llama``, Qwen2.5 is ``qwen2``."""

STATIC_ROPE = ("default", "linear", "llama3", "yarn")
"""Their frequencies do not depend on the length of the sequence; those of the others ("dynamic", "longrope") do."""


@dataclass(frozen=True, slots=True)
class Dimensions:
    """Of the decoder layers' linear modules, in elements."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim


def read_document(folder: Path) -> Document:
    """config.json of a model folder, its family and dimensions checked; raises UnsupportedModel, BadWeights."""
    if not folder.is_dir():
        raise UnsupportedModel(f"{folder}: no such folder")
    path = folder / "config.json"
    if not path.is_file():
        hint = f" ({ADAPTER_CONFIG} is there: an adapter, not a model)" if (folder / ADAPTER_CONFIG).exists() else ""
        raise UnsupportedModel(f"{folder}: no config.json{hint}")
    document = read_json_object(path)
    try:
        read_dimensions(document)
    except UnsupportedModel as error:
        raise UnsupportedModel(f"{path}: {error}") from None
    return document


def family_of(document: Document) -> Family:
    """The family that config.json names; raises UnsupportedModel with the first field that is in the way."""
    family = FAMILIES.get(str(document.get("model_type")))
    if family is None:
        raise UnsupportedModel(
            f"not supported: model_type {document.get('model_type')!r}; supported are {', '.join(FAMILIES)}"
        )
    for check in _CHECKS:
        if refusal := check(document, family):
            raise UnsupportedModel(f"not supported: {refusal}")
    return family


def read_dimensions(document: Document) -> Dimensions:
    """Raises UnsupportedModel as ``family_of`` does, and for dimensions that are missing or make no sense."""
    family = family_of(document)
    hidden, heads = _dimension(document, "hidden_size"), _dimension(document, "num_attention_heads")
    found = Dimensions(
        hidden_size=hidden,
        intermediate_size=_dimension(document, "intermediate_size"),
        num_layers=_dimension(document, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=_dimension(document, "num_key_value_heads", family.kv_heads, heads),
        head_dim=_dimension(document, "head_dim", family.head_dim, max(hidden // heads, 1)),
    )
    for key in ("vocab_size", "max_position_embeddings"):
        if key in document:
            _dimension(document, key)
    if found.num_heads % found.num_kv_heads:
        raise UnsupportedModel(f"{found.num_heads} heads do not divide into {found.num_kv_heads} groups")
    if found.head_dim % 2:
        raise UnsupportedModel(f"not supported: head_dim={found.head_dim}, rotary embedding turns pairs")
    return found


_MOST = {"num_hidden_layers": 1 << 12, "vocab_size": 1 << 24, "max_position_embeddings": 1 << 30}
"""Beyond any model there is; what follows from a larger number would fill the memory before it is refused."""


def _dimension(document: Document, key: str, missing: int | None = None, null: int | None = None) -> int:
    """``missing``: the default of the family's config class; ``null``: what it derives from the other dimensions."""
    value = document.get(key, missing)
    value = null if value is None else value
    most = _MOST.get(key, 1 << 20)
    if type(value) is not int or not 1 <= value <= most:
        raise UnsupportedModel(f"{key} is {value!r}, not a whole number from 1 to {most}")
    return value


# Each check names what it refuses; None means that the config passes it.
_Check = Callable[[Document, Family], str | None]


def _activation(document: Document, _family: Family) -> str | None:
    value = document.get("hidden_act", "silu")
    return None if value == "silu" else f"hidden_act={value!r}"


def _attention_bias(document: Document, family: Family) -> str | None:
    obeyed = family.attention_bias or family.qkv_bias
    return "attention_bias=True" if document.get("attention_bias") and not obeyed else None


def _mlp_bias(document: Document, family: Family) -> str | None:
    return "mlp_bias=True" if document.get("mlp_bias") and not family.mlp_bias else None


def _quantization(document: Document, _family: Family) -> str | None:
    return "quantized weights (quantization_config)" if document.get("quantization_config") else None


def _rope(document: Document, _family: Family) -> str | None:
    for key in ("rope_parameters", "rope_scaling"):  # the names of transformers 5 and of older configs
        rope = document.get(key) or {}
        if not isinstance(rope, Mapping) or any(isinstance(value, Mapping) for value in rope.values()):
            return f"{key}={rope!r}, not one set of parameters for all layers"
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in STATIC_ROPE:
            return f"rope_type {kind!r}; supported are {', '.join(STATIC_ROPE)}"
        if wrong := _wrong_number(rope):
            return f"{key}: {wrong}"
        if refusal := _partial_rotary(rope):
            return refusal
    return _wrong_number(document) or _partial_rotary(document)


def _partial_rotary(document: Document) -> str | None:
    factor = document.get("partial_rotary_factor")
    return None if factor in (None, 1, 1.0) else f"partial_rotary_factor={factor!r}"


def _wrong_number(rope: Mapping[str, object]) -> str | None:
    for key in (*_ROPE_NUMBERS, *_ROPE_OPTIONS):
        value = rope.get(key, 1)
        if value is None and key in _ROPE_OPTIONS:
            continue
        if type(value) not in (int, float) or not 0 < value < math.inf:  # type: ignore[operator]
            return f"{key}={value!r}, not a number above 0"
    return None


_ROPE_NUMBERS = ("rope_theta", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_ROPE_OPTIONS = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")
_CHECKS: tuple[_Check, ...] = (_activation, _attention_bias, _mlp_bias, _quantization, _rope)
