"""Where the drift of a base and an adapter meet, from their factors alone: no data, no forward pass.

In: the drift's low-rank factors D and an adapter's updates ΔW = s·B·A, module by module. Out: how large D is beside ΔW,
and how much of D lies in the directions that the adapter reads (row space of A) and writes (column space of B). A
drift that is small beside the update, or that leaves those directions alone, is one that a copied adapter survives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from readapt_runtime.lora_format import LoraAdapter, LoraModule
from readapt_runtime.lowrank import LowRank, inner, norm, project


@dataclass(frozen=True, slots=True)
class ModuleOverlap:
    """One module; shares are within [0, 1]."""

    drift: float
    """‖D‖ of the factors, as far as their rank reaches."""
    update: float
    """‖ΔW‖."""
    read: float
    """Share of ‖D‖² in the directions that A reads."""
    written: float
    """Share of ‖D‖² in the directions that B writes."""
    read_by_chance: float
    """What ``read`` would be for a drift without direction: rank / inputs."""
    written_by_chance: float
    along: float
    """⟨D, ΔW⟩ / (‖D‖ ‖ΔW‖): whether the base itself moved the way of the adapter, within [-1, 1]."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """Over the modules of an adapter; shares are weighted by ‖D‖²."""

    size: float
    """‖D‖ / ‖ΔW‖ over the adapter's modules; 0 when the base did not move there, inf for an adapter of zero."""
    read: float
    written: float
    along: float
    modules: Mapping[str, ModuleOverlap]


def overlap(adapter: LoraAdapter, drift: Mapping[str, LowRank]) -> Overlap:
    """Of the adapter's modules; one that the drift lacks did not move. Raises NotFinite."""
    modules = {n: _module(m, drift[n]) for n, m in adapter.modules.items() if n in drift}
    still = [norm(_update(m)) for n, m in adapter.modules.items() if n not in drift]
    moved = math.hypot(*(m.drift for m in modules.values()))
    update = math.hypot(*still, *(m.update for m in modules.values()))
    return Overlap(
        size=(moved / update if update else math.inf) if moved else 0.0,
        read=_weighted(modules, lambda m: m.read),
        written=_weighted(modules, lambda m: m.written),
        along=_weighted(modules, lambda m: m.along),
        modules=modules,
    )


def _module(module: LoraModule, drift: LowRank) -> ModuleOverlap:
    update = _update(module)
    of_drift, of_update = norm(drift), norm(update)
    both = of_drift * of_update
    return ModuleOverlap(
        drift=of_drift,
        update=of_update,
        read=_share(project(drift, rows=module.a), of_drift),
        written=_share(project(drift, columns=module.b), of_drift),
        read_by_chance=min(1.0, module.rank / module.a.shape[1]),
        written_by_chance=min(1.0, module.rank / module.b.shape[0]),
        along=inner(drift, update) / both if both else 0.0,
    )


def _update(module: LoraModule) -> LowRank:
    return LowRank(module.b.double() * module.scale, module.a.double())


def _share(part: LowRank, whole: float) -> float:
    return min(1.0, (norm(part) / whole) ** 2) if whole else 0.0


def _weighted(modules: Mapping[str, ModuleOverlap], part: Callable[[ModuleOverlap], float]) -> float:
    """The mean over modules, weighted by ‖D‖²; 0 without drift."""
    weight = math.fsum(m.drift**2 for m in modules.values())
    return math.fsum(m.drift**2 * part(m) for m in modules.values()) / weight if weight else 0.0
