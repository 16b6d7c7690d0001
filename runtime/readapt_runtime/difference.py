"""Two checkpoints of one architecture, tensor by tensor.

In: two model folders. Out: the differences of their tensors in float32, with exact norms, one at a time. Next: the
drift of a base keeps their leading directions, extraction makes an adapter of them. bf16 minus bf16 is exact in
float32 and would not be in bf16.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from readapt_api.errors import Terminal
from readapt_runtime.lora_format import Shape, linear_shapes
from readapt_runtime.model.family import Document, read_dimensions, read_document
from readapt_runtime.safe_tensors import Checkpoint

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
_BLOCK = 1 << 16


class DifferentModels(Terminal):
    """The two checkpoints are not versions of one model."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One tensor's change; ``norm`` and ``old_norm`` are Frobenius norms, exact to float64 accumulation."""

    name: str
    delta: torch.Tensor  # float32, new - old
    norm: float
    old_norm: float

    def without_delta(self) -> Difference:
        """The norms alone, for records that outlive the tensor."""
        return replace(self, delta=self.delta.new_empty(0))


class CheckpointPair:
    """An old and a new checkpoint, opened side by side; a context manager."""

    def __init__(self, old: Path, new: Path) -> None:
        """Raises BadWeights, UnsupportedModel, DifferentModels (naming the first field or module that differs)."""
        old_config, new_config = (read_document(folder) for folder in (old, new))
        _require_same(old_config, new_config)
        self.shapes: Mapping[str, Shape] = linear_shapes(old_config)
        with ExitStack() as stack:
            self.old = stack.enter_context(Checkpoint(old))
            self.new = stack.enter_context(Checkpoint(new))
            for module, shape in self.shapes.items():
                _check_shapes(f"{module}.weight", shape, self.old, self.new)
            self._stack = stack.pop_all()

    def linear(self, module: str) -> Difference:
        """The change of one linear module's weight, [out, in]."""
        return self._difference(f"{module}.weight", self.old.read(f"{module}.weight"))

    @property
    def largest(self) -> int:
        """Elements of the largest linear module."""
        return max(shape.out * shape.into for shape in self.shapes.values())

    @property
    def others(self) -> list[str]:
        """Every tensor of the new checkpoint that is no linear module of a decoder layer, and is no copy of another."""
        linear = {f"{module}.weight" for module in self.shapes}
        names = [n for n in self.new.infos if n not in linear and not n.endswith("rotary_emb.inv_freq")]
        return [n for n in names if not (n == HEAD and HEAD not in self.old.infos and self._head_is_tied())]

    def other(self, name: str) -> Difference:
        """The change of any tensor of ``others``; rows that only one side has count in full."""
        return self._difference(name, self._old_value(name))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def _old_value(self, name: str) -> torch.Tensor | None:
        if name in self.old.infos:
            return self.old.read(name)
        return self.old.read(EMBEDDING) if name == HEAD else None

    def _head_is_tied(self) -> bool:
        return EMBEDDING in self.new.infos and torch.equal(self.new.read(HEAD), self.new.read(EMBEDDING))

    def _difference(self, name: str, old: torch.Tensor | None) -> Difference:
        new = self.new.read(name).float()
        if old is None:
            return Difference(name, new, frobenius(new), 0.0)
        old = old.float()
        old_norm = frobenius(old)
        delta = new.sub_(old) if new.shape == old.shape else _unequal(name, new, old)
        return Difference(name, delta, frobenius(delta), old_norm)


def frobenius(tensor: torch.Tensor) -> float:
    """‖tensor‖_F with float64 accumulation, a cache-sized block at a time."""
    flat = tensor.flatten()
    blocks = (flat[at : at + _BLOCK].double() for at in range(0, flat.numel(), _BLOCK))
    return math.sqrt(sum(float(torch.dot(block, block)) for block in blocks))


def _unequal(name: str, new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """A grown or shrunk vocabulary: row by row over the common ones, the others in full."""
    if new.ndim != 2 or old.ndim != 2 or new.shape[1] != old.shape[1]:
        raise DifferentModels(f"{name}: shapes {list(old.shape)} and {list(new.shape)} cannot be compared")
    rows = max(new.shape[0], old.shape[0])
    delta = torch.zeros(rows, new.shape[1])
    delta[: new.shape[0]] = new
    delta[: old.shape[0]] -= old
    return delta


def _require_same(old: Document, new: Document) -> None:
    """Raises DifferentModels with the first field of config.json that makes these two models rather than two versions.

    Two ways to cut a weight into heads are two functions of equal shapes.
    """
    ours, theirs = read_dimensions(old), read_dimensions(new)
    facts = {
        "model_type": (old["model_type"], new["model_type"]),
        "num_hidden_layers": (ours.num_layers, theirs.num_layers),
        "num_attention_heads": (ours.num_heads, theirs.num_heads),
        "num_key_value_heads": (ours.num_kv_heads, theirs.num_kv_heads),
        "head_dim": (ours.head_dim, theirs.head_dim),
        **{key: (bool(old.get(key)), bool(new.get(key))) for key in ("attention_bias", "mlp_bias")},
    }
    for field, (before, after) in facts.items():
        if before != after:
            raise DifferentModels(f"config.json: {field} is {before} and {after}")


def _check_shapes(name: str, shape: Shape, *checkpoints: Checkpoint) -> None:
    for checkpoint in checkpoints:
        info = checkpoint.infos.get(name)
        if info is None:
            raise DifferentModels(f"{checkpoint.folder}: no tensor {name}")
        if info.shape != tuple(shape):
            raise DifferentModels(
                f"{name}: shape {list(info.shape)} in {checkpoint.folder}, expected {list(shape)} as in the old config"
            )
