"""From two versions of a base to the factors of what changed.

In: two model folders. Out: drift.safetensors and drift.json in a third. Next: ``adapt`` searches over β times these
factors. One tensor of each side is in memory at a time.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

from readapt_api.jobs import DRIFT_RANK
from readapt_runtime.difference import CheckpointPair, Difference
from readapt_runtime.drift.folder import DriftReport, ModuleDrift, write_drift
from readapt_runtime.lowrank import LowRank, decompose
from readapt_runtime.progress import Log
from readapt_runtime.threads import fitting_threads


@dataclass(frozen=True, slots=True)
class DriftSummary:
    """See ``readapt_api.jobs.DriftOutcome``."""

    relative_norm: float
    captured_energy: float
    moved: int
    modules: int


def measure(old: Path, new: Path, out: Path, log: Log, rank: int = DRIFT_RANK) -> DriftSummary:
    """Writes the drift old -> new into ``out``. Raises DifferentModels, BadWeights, UnsupportedModel."""
    modules: dict[str, ModuleDrift] = {}
    factors: dict[str, LowRank] = {}
    with CheckpointPair(old, new) as pair, fitting_threads(pair.largest):
        for done, name in enumerate(pair.shapes):
            modules[name], found = _measure_module(pair.linear(name), rank)
            if found is not None:
                factors[name] = found
            log.progress((done + 1) / len(pair.shapes), f"drift of {name}")
        others = (pair.other(name) for name in pair.others)
        rest = {d.name: d.norm / d.old_norm if d.old_norm else 1.0 for d in others if d.norm}
    report = _report(modules, rest, rank)
    write_drift(out, report, factors)
    return DriftSummary(report.relative_norm, report.captured_energy, len(factors), len(modules))


def _measure_module(change: Difference, rank: int) -> tuple[ModuleDrift, LowRank | None]:
    if change.norm == 0.0:
        still = ModuleDrift(norm=0.0, base_norm=change.old_norm, captured_energy=1.0, rank=0, iterations=0)
        return still, None
    found = decompose(change.delta, rank, seed=zlib.crc32(change.name.encode()))
    kept = float(found.s.double().square().sum())
    moved = ModuleDrift(
        norm=change.norm,
        base_norm=change.old_norm,
        captured_energy=min(kept / change.norm**2, 1.0),
        rank=found.s.numel(),
        iterations=found.iterations,
    )
    return moved, found.factors(rank)


def _report(modules: dict[str, ModuleDrift], rest: dict[str, float], rank: int) -> DriftReport:
    total = sum(m.norm**2 for m in modules.values())
    base = sum(m.base_norm**2 for m in modules.values())
    kept = sum(m.captured_energy * m.norm**2 for m in modules.values())
    return DriftReport(
        rank=rank,
        relative_norm=(total / base) ** 0.5 if base else 0.0,
        captured_energy=kept / total if total else 1.0,
        rest=rest,
        modules=modules,
    )
