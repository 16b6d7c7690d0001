"""Rotary position embedding as the config describes it: frequencies that hold for every position.

In: a transformers config with its ``rope_parameters``. Out: ``Rotary``, and from it the tables of attention backends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from readapt_runtime.model.family import STATIC_ROPE, UnsupportedModel


@dataclass(frozen=True, slots=True)
class Rotary:
    """Rotary position embedding: inverse frequencies ``[head_dim / 2]`` and the factor on cos and sin."""

    inv_freq: tuple[float, ...]
    attention_scaling: float


def read_rotary(raw: Any, head_dim: int) -> Rotary:
    """Of a transformers config; the scaled variants are transformers' own functions. Raises UnsupportedModel."""
    parameters = raw.rope_parameters
    kind = parameters.get("rope_type")
    if kind not in STATIC_ROPE:
        raise UnsupportedModel(f"not supported: rope_type {kind!r}")
    try:
        inv_freq, scaling = _unscaled(parameters, head_dim) if kind == "default" else _scaled(raw, kind)
    except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise UnsupportedModel(f"config.json: rope parameters {parameters}: {error}"[:500]) from error
    if inv_freq.shape != (head_dim // 2,) or not bool(inv_freq.isfinite().all()):
        raise UnsupportedModel(f"config.json: rope parameters {parameters} give no frequency for each pair of a head")
    return Rotary(tuple(inv_freq.tolist()), float(scaling))


def _unscaled(parameters: Mapping[str, Any], head_dim: int) -> tuple[torch.Tensor, float]:
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float) / head_dim
    return 1.0 / parameters["rope_theta"] ** exponents, 1.0


def _scaled(raw: Any, kind: str) -> tuple[torch.Tensor, float]:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    inv_freq, scaling = ROPE_INIT_FUNCTIONS[kind](raw, torch.device("cpu"))
    return inv_freq, float(scaling)


def rotary_tables(rotary: Rotary, length: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin ``[length, head_dim]``, computed in float32, in the dtype and on the device of ``like``."""
    inv_freq = torch.tensor(rotary.inv_freq, dtype=torch.float32)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), inv_freq)
    angles = torch.cat((angles, angles), dim=-1)
    return (angles.cos() * rotary.attention_scaling).to(like), (angles.sin() * rotary.attention_scaling).to(like)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates pairs (i, i + dim/2): x ``[tokens, heads, dim]``, cos and sin ``[tokens, 1, dim]``."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
