"""The files of a drift artifact.

``drift.safetensors`` holds the factors in float32, ``drift.json`` the exact norms and the leading singular values. A
module that did not move has norms of zero and no factors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path

from pydantic import Field

from readapt_api.contract import Contract
from readapt_runtime.factor_file import read_factors, write_factors
from readapt_runtime.lowrank import LowRank

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
    singular_values: tuple[float, ...] = ()
    """Of W1 - W0, descending: one per direction in the factors; empty in a document of an older version."""

    @property
    def relative_norm(self) -> float:
        """‖W1 - W0‖ / ‖W0‖; 1 where only the old weights are zero."""
        return self.norm / self.base_norm if self.base_norm else float(self.norm > 0)

    @property
    def captured(self) -> tuple[float, ...]:
        """Share of norm² in the first direction, the first two, and so on."""
        kept = accumulate(value**2 for value in self.singular_values)
        return tuple(min(part / self.norm**2, 1.0) for part in kept)


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

    @property
    def moved(self) -> int:
        """Modules that differ at all."""
        return sum(module.norm > 0 for module in self.modules.values())

    def most_moved(self, count: int) -> list[tuple[str, ModuleDrift]]:
        """The modules of the largest relative norms that moved, largest first."""
        moved = [(name, module) for name, module in self.modules.items() if module.norm]
        return sorted(moved, key=lambda entry: -entry[1].relative_norm)[:count]


def write_drift(folder: Path, report: DriftReport, factors: Mapping[str, LowRank]) -> None:
    """Equal drifts give equal bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    write_factors(folder / DRIFT_WEIGHTS, factors)
    text = json.dumps(report.to_wire(), indent=1, sort_keys=True) + "\n"
    (folder / DRIFT_REPORT).write_text(text, encoding="utf-8")


def read_drift(folder: Path) -> Mapping[str, LowRank]:
    """Module name -> factors of W1 - W0, for the modules that moved; empty for equal versions. Raises BadWeights."""
    return read_factors(folder / DRIFT_WEIGHTS)
