"""PEFT's adapter_config.json, as far as it can be served.

In: the JSON object. Out: which modules it names, with which rank and scale. Next: ``lora_format`` holds the weights
against it. Matching follows PEFT 0.21 (``check_target_module_exists``, ``get_pattern_key``). Every option that
changes what the weights mean is either honoured or refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import regex
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from readapt_api.artifacts import ADAPTER_CONFIG
from readapt_runtime.safe_tensors import BadWeights

_Number = TypeVar("_Number", int, float)
_LARGEST = float(torch.finfo(torch.float32).max)
_PATIENCE_S = 1.0
_REFUSED_WHEN_SET = (
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "fan_in_fan_out",
    "modules_to_save",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
    "ensure_weight_tying",
    "megatron_config",
)
"""Options that change the function beyond B @ A, or that carry weights outside of the linear modules."""

_CHANGES_THE_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")
"""Initialisations that also rewrite the base's weights: B @ A belongs to the rewritten ones, not to the base."""

DORA_REFUSED = (
    "DoRA cannot be served: it scales whole rows of the base; merge it (PEFT's merge_and_unload) and give the result "
    "as a checkpoint, from which a LoRA is extracted"
)


class _Document(BaseModel):
    """The keys that matter; PEFT adds more of them with each release."""

    model_config = ConfigDict(extra="allow", frozen=True)

    peft_type: str
    r: int = Field(ge=1, le=4096)
    lora_alpha: float = Field(allow_inf_nan=False)
    target_modules: list[str] | str = Field(max_length=8192)
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    bias: str = "none"
    init_lora_weights: bool | str = True
    use_rslora: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class PeftLoraConfig:
    """What a config says about each linear module."""

    document: _Document
    targeted: frozenset[str] = frozenset()
    """Names and suffixes of names in ``target_modules``, when that is a list."""

    def targets(self, name: str) -> bool:
        """Whether the adapter has weights for the module ``name``."""
        document = self.document
        if document.exclude_modules and _names(document.exclude_modules, name):
            return False
        if isinstance(document.target_modules, str):
            return document.target_modules.lower() == "all-linear" or _names(document.target_modules, name)
        return not self.targeted.isdisjoint(_suffixes(name)) and self._in_layers(name)

    def rank(self, name: str) -> int:
        """The rank of a module, ``rank_pattern`` first."""
        return _pattern(self.document.rank_pattern, name, self.document.r)

    def scale(self, name: str) -> float:
        """alpha / r, or alpha / √r with rank-stabilised LoRA. Raises BadWeights for one that no float32 holds."""
        alpha = _pattern(self.document.alpha_pattern, name, self.document.lora_alpha)
        rank = self.rank(name)
        scale = alpha / math.sqrt(rank) if self.document.use_rslora else alpha / rank
        if abs(scale) > _LARGEST:
            raise BadWeights(f"{ADAPTER_CONFIG}: alpha {alpha:g} of {name} is beyond what float32 holds")
        return scale

    def _in_layers(self, name: str) -> bool:
        wanted = self.document.layers_to_transform
        if wanted is None or wanted == []:
            return True
        patterns = self.document.layers_pattern or "[^.]*"
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            if match := _match(rf"(?:^|.*?\.){pattern}\.(?P<layer>\d+)\.", name):
                layer = int(match["layer"])
                return layer == wanted if isinstance(wanted, int) else layer in wanted
        return False


def parse_config(document: Mapping[str, object]) -> PeftLoraConfig:
    """Raises BadWeights for anything but plain LoRA on linear modules, naming the option."""
    if document.get("peft_type") != "LORA":
        raise BadWeights(f"{ADAPTER_CONFIG}: peft_type {document.get('peft_type')!r}; only LORA is supported")
    if document.get("use_dora"):
        raise BadWeights(f"{ADAPTER_CONFIG}: use_dora: {DORA_REFUSED}")
    for option in _REFUSED_WHEN_SET:
        if document.get(option) not in (None, False, [], {}):
            raise BadWeights(f"{ADAPTER_CONFIG}: {option} cannot be served")
    try:
        parsed = _Document.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadWeights(f"{ADAPTER_CONFIG}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    for name in ("lm_head", "embed_tokens"):
        if isinstance(parsed.target_modules, list) and _names(parsed.target_modules, f"model.{name}"):
            raise BadWeights(f"{ADAPTER_CONFIG}: target_modules: LoRA on {name} cannot be served")
    if parsed.bias != "none":
        raise BadWeights(f"{ADAPTER_CONFIG}: bias {parsed.bias!r} cannot be served, only 'none'")
    if str(parsed.init_lora_weights).lower().startswith(_CHANGES_THE_BASE):
        raise BadWeights(
            f"{ADAPTER_CONFIG}: init_lora_weights {parsed.init_lora_weights!r} changes the base too and cannot be "
            "served; PEFT saves such an adapter as plain LoRA with path_initial_model_for_weight_conversion"
        )
    if any(rank < 1 for rank in (parsed.rank_pattern or {}).values()):
        raise BadWeights(f"{ADAPTER_CONFIG}: rank_pattern: ranks start at 1")
    if not all(math.isfinite(alpha) for alpha in (parsed.alpha_pattern or {}).values()):
        raise BadWeights(f"{ADAPTER_CONFIG}: alpha_pattern: not a finite number")
    _compile(parsed)
    listed = frozenset[str]() if isinstance(parsed.target_modules, str) else frozenset(parsed.target_modules)
    return PeftLoraConfig(parsed, listed)


def _names(names: list[str] | str, module: str) -> bool:
    """A string is a regular expression over the full name, a list holds name suffixes."""
    if isinstance(names, str):
        return _match(names, module, whole=True) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _match(pattern: str, name: str, whole: bool = False) -> regex.Match[str] | None:
    """Raises BadWeights for an expression that backtracks for longer than a name is worth."""
    try:
        find = regex.fullmatch if whole else regex.match
        return find(pattern, name, timeout=_PATIENCE_S)
    except TimeoutError:
        raise BadWeights(f"{ADAPTER_CONFIG}: {pattern[:80]!r} takes more than {_PATIENCE_S:g} s to match") from None


def _suffixes(module: str) -> list[str]:
    """The name itself and what follows each of its dots."""
    parts = module.split(".")
    return [".".join(parts[at:]) for at in range(len(parts))]


def _pattern(patterns: Mapping[str, _Number] | None, module: str, default: _Number) -> _Number:
    for pattern, value in (patterns or {}).items():
        if _match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _compile(document: _Document) -> None:
    expressions = [*(document.rank_pattern or {}), *(document.alpha_pattern or {})]
    for names in (document.target_modules, document.exclude_modules):
        expressions += [names] if isinstance(names, str) else []
    patterns = document.layers_pattern or []
    expressions += [patterns] if isinstance(patterns, str) else patterns
    for expression in expressions:
        try:
            regex.compile(expression)
        except regex.error as error:
            raise BadWeights(f"{ADAPTER_CONFIG}: {expression[:80]!r} is no regular expression") from error
