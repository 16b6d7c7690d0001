"""Low-rank matrices in a safetensors file: ``<module>.left`` [out, r] and ``<module>.right`` [r, in]."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from readapt_runtime.lowrank import LowRank
from readapt_runtime.safe_tensors import BadWeights, TensorFile, save_readable


def write_factors(path: Path, factors: Mapping[str, LowRank]) -> None:
    """Equal factors give equal bytes."""
    tensors: dict[str, torch.Tensor] = {}
    for name, value in factors.items():
        tensors[f"{name}.left"] = value.left.contiguous()
        tensors[f"{name}.right"] = value.right.contiguous()
    save_readable(path, tensors)


def read_factors(path: Path) -> dict[str, LowRank]:
    """By module, in sorted order, finite, as stored. Raises BadWeights."""
    with TensorFile(path) as file:
        names = sorted({name.rpartition(".")[0] for name in file.infos})
        for name in names:
            sides = [file.infos.get(f"{name}.{side}") for side in ("left", "right")]
            shapes = [side.shape for side in sides if side is not None]
            if len(shapes) != 2 or any(len(s) != 2 for s in shapes) or shapes[0][1] != shapes[1][0]:
                raise BadWeights(f"{path.name}: {name}: not a pair of factors")
        return {name: LowRank(file.read(f"{name}.left"), file.read(f"{name}.right")) for name in names}
