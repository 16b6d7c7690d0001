"""The files of a drift artifact.

``drift.safetensors`` holds ``<module>.left`` [out, r] and ``<module>.right`` [r, in] in float32, ``drift.json`` the
exact norms. A module that did not move has norms of zero and no factors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import Field

from readapt_api.contract import Contract
from readapt_runtime.lowrank import LowRank
from readapt_runtime.safe_tensors import BadWeights, TensorFile, save_readable

DRIFT_WEIGHTS = "drift.safetensors"
DRIFT_REPORT = "drift.json"


class ModuleDrift(Contract):
    """How far one linear module moved."""

    norm: float
    """‖W1 - W0‖, exact."""
    base_norm: float
    """‖W0‖, exact."""
    captured_energy: float = Field(ge=0, le=1)
    """Share of norm² in the factors; 1 for a module that did not move."""
    rank: int
    iterations: int
    """Of the randomized SVD; 0 when the full one was taken."""


class DriftReport(Contract):
    """drift.json."""

    version: int = 1
    rank: int
    relative_norm: float
    """Over all linear modules."""
    captured_energy: float
    rest: dict[str, float]
    """Name -> relative norm of the tensors that are no linear module and moved (embeddings, norms, biases)."""
    modules: dict[str, ModuleDrift]


def write_drift(folder: Path, report: DriftReport, factors: Mapping[str, LowRank]) -> None:
    """Equal drifts give equal bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, torch.Tensor] = {}
    for name, value in factors.items():
        tensors[f"{name}.left"] = value.left.contiguous()
        tensors[f"{name}.right"] = value.right.contiguous()
    save_readable(folder / DRIFT_WEIGHTS, tensors)
    text = json.dumps(report.to_wire(), indent=1, sort_keys=True) + "\n"
    (folder / DRIFT_REPORT).write_text(text, encoding="utf-8")


def read_drift(folder: Path) -> Mapping[str, LowRank]:
    """Module name -> factors of W1 - W0, for the modules that moved; empty for equal versions. Raises BadWeights."""
    with TensorFile(folder / DRIFT_WEIGHTS) as file:
        names = sorted({name.rpartition(".")[0] for name in file.infos})
        for name in names:
            sides = [file.infos.get(f"{name}.{side}") for side in ("left", "right")]
            shapes = [side.shape for side in sides if side is not None]
            if len(shapes) != 2 or any(len(s) != 2 for s in shapes) or shapes[0][1] != shapes[1][0]:
                raise BadWeights(f"{DRIFT_WEIGHTS}: {name}: not a pair of factors")
        return {name: LowRank(file.read(f"{name}.left"), file.read(f"{name}.right")) for name in names}
