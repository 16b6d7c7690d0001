"""Two checkpoints of one architecture, tensor by tensor.

In: two model folders. Out: the differences of their linear modules in float32, with exact norms, one at a time. Next:
the drift of a base keeps their leading directions, extraction makes an adapter of them; ``rest`` measures the other
tensors. bf16 minus bf16 is exact in float32 and would not be in bf16. Both sides are read in blocks that stay in the
cache: a difference costs its own memory and no more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from readapt_api.errors import Terminal
from readapt_runtime.lora_format import Shape, linear_shapes
from readapt_runtime.model.family import Document, read_dimensions, read_document
from readapt_runtime.safe_tensors import BadWeights, Checkpoint

_BLOCK = 1 << 17
"""Elements: on a CPU both sides and a float64 copy stay in the cache; a GPU wants fewer and longer transfers."""
_GPU_BLOCK = 1 << 23
_FUNCTION = ("hidden_act", "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters", "sliding_window")
"""Fields of config.json that change what a model computes and none of its tensors' shapes."""


class DifferentModels(Terminal):
    """The two checkpoints are not versions of one model."""


@dataclass(frozen=True, slots=True)
class RowChanges:
    """What became of the rows of a vocabulary, by token."""

    changed: int
    """Tokens of both sides whose row differs."""
    added: int
    removed: int
    moved: int
    """Tokens of both sides with another row number."""


@dataclass(frozen=True, slots=True)
class Change:
    """One tensor's change; the norms are Frobenius norms, exact to float64 accumulation."""

    name: str
    norm: float
    old_norm: float
    rows: RowChanges | None = None

    @property
    def relative(self) -> float:
        """‖new - old‖ / ‖old‖; 1 where the old one is zero or was not there."""
        return self.norm / self.old_norm if self.old_norm else 1.0


class CheckpointPair:
    """An old and a new checkpoint, opened side by side; a context manager. Differences are made on ``device``."""

    def __init__(self, old: Path, new: Path, device: torch.device | None = None) -> None:
        """Raises BadWeights, UnsupportedModel, DifferentModels (naming the first field or module that differs)."""
        self.device = device or torch.device("cpu")
        old_config, new_config = (read_document(folder) for folder in (old, new))
        _require_same(old_config, new_config)
        self.shapes: Mapping[str, Shape] = linear_shapes(old_config)
        self.unlike = [
            f"config.json: {key} is {old_config[key]} and {new_config[key]}"
            for key in _FUNCTION
            if key in old_config and key in new_config and old_config[key] != new_config[key]
        ]
        """Differences that are in no tensor."""
        with ExitStack() as stack:
            self.old = stack.enter_context(Checkpoint(old))
            self.new = stack.enter_context(Checkpoint(new))
            for module, shape in self.shapes.items():
                _check_shapes(f"{module}.weight", shape, self.old, self.new)
            self._stack = stack.pop_all()

    @property
    def largest(self) -> int:
        """Elements of the largest linear module."""
        return max(shape.out * shape.into for shape in self.shapes.values())

    def subtract(self, module: str, out: torch.Tensor) -> Change:
        """Fills ``out`` [out, in], contiguous, float32, on the pair's device, with new - old of a module's weight.

        Raises BadWeights for NaN and infinity, FileChanged.
        """
        name = f"{module}.weight"
        squares = old_squares = 0.0
        for old, delta in self._subtracted(name, out):
            old_squares += squared(old, self.old, name)
            squares += squared(delta, self.new, name)
        return Change(name, math.sqrt(squares), math.sqrt(old_squares))

    def subtract_again(self, module: str, out: torch.Tensor) -> None:
        """``subtract`` for who knows the norms already."""
        for _ in self._subtracted(f"{module}.weight", out):
            pass

    def blocks(self, side: Checkpoint, name: str, width: int = 1) -> Iterator[torch.Tensor]:
        """The tensor in flat float32 pieces, each a multiple of ``width`` elements; NaN passes (see ``squared``)."""
        info = side.infos[name]
        step = max(width, self._block // width * width)
        for start in range(0, info.elements, step):
            count = min(step, info.elements - start)
            block = torch.empty(count, dtype=info.dtype, pin_memory=self.device.type == "cuda")
            side.read_block(name, start, block)
            yield block.to(self.device).float()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def _subtracted(self, name: str, out: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(old, new - old) block by block while ``out`` fills."""
        blocks = zip(self.blocks(self.old, name), self.blocks(self.new, name), strict=True)
        for place, (old, new) in zip(torch.split(out.view(-1), self._block), blocks, strict=True):
            yield old, torch.sub(new, old, out=place)

    @property
    def _block(self) -> int:
        return _BLOCK if self.device.type == "cpu" else _GPU_BLOCK


def squared(block: torch.Tensor, side: Checkpoint, name: str) -> float:
    """‖block‖² of a flat block, in float64; raises BadWeights, naming the tensor, when it is not finite."""
    wide = block.double()
    square = float(torch.dot(wide, wide))
    if not math.isfinite(square):
        raise BadWeights(f"{side.folder}: {name}: NaN or infinite values")
    return square


def frobenius(tensor: torch.Tensor) -> float:
    """‖tensor‖_F with float64 accumulation, a cache-sized block at a time."""
    wide = (block.double() for block in torch.split(tensor.flatten(), _BLOCK))
    return math.sqrt(sum(float(torch.dot(block, block)) for block in wide))


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
