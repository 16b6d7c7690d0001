"""From two versions of a base to the factors of what changed.

In: two model folders. Out: drift.safetensors and drift.json in a third. Next: ``adapt`` searches over β times these
factors. One tensor of each side is in memory at a time.
"""

from __future__ import annotations

from pathlib import Path

import torch

from readapt_api.jobs import DRIFT_RANK
from readapt_runtime.difference import Change, CheckpointPair
from readapt_runtime.directions import leading_directions
from readapt_runtime.drift.folder import DriftReport, ModuleDrift, write_drift
from readapt_runtime.lowrank import Decomposition, LowRank
from readapt_runtime.progress import Log
from readapt_runtime.rest import Rest
from readapt_runtime.threads import fitting_threads


def measure(
    old: Path, new: Path, out: Path, log: Log, rank: int = DRIFT_RANK, device: torch.device | None = None
) -> DriftReport:
    """Writes the drift old -> new into ``out`` and returns its drift.json.

    Raises DifferentModels, UnknownVocabulary, BadWeights, UnsupportedModel.
    """
    modules: dict[str, ModuleDrift] = {}
    factors: dict[str, LowRank] = {}
    with CheckpointPair(old, new, device) as pair, fitting_threads(pair.largest):
        rest = Rest(pair)
        for done, (name, change, found) in enumerate(leading_directions(pair, list(pair.shapes), rank), start=1):
            modules[name] = _module_drift(change, found)
            if found is not None:
                kept = found.factors(rank)
                factors[name] = LowRank(kept.left.cpu(), kept.right.cpu())
            log.progress(done / len(pair.shapes), f"drift of {name}")
        others = [rest.measure(name) for name in rest.names]
    report = _report(modules, {change.name: change.relative for change in others if change.norm}, rank)
    write_drift(out, report, factors)
    return report


def _module_drift(change: Change, found: Decomposition | None) -> ModuleDrift:
    if found is None:
        return ModuleDrift(norm=0.0, base_norm=change.old_norm, captured_energy=1.0, rank=0, iterations=0)
    kept = float(found.s.double().square().sum())
    return ModuleDrift(
        norm=change.norm,
        base_norm=change.old_norm,
        captured_energy=min(kept / change.norm**2, 1.0),
        rank=found.s.numel(),
        iterations=found.iterations,
        singular_values=tuple(float(f"{value:.6g}") for value in found.s.tolist()),
    )


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
