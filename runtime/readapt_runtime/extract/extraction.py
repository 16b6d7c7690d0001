"""From two checkpoints to an adapter, tensor by tensor.

In: a base and a full fine-tuned checkpoint of it. Out: a folder with the adapter, ``sidecar.safetensors`` and
``report.json``. Next: the Job publishes it as a variant. Per module: the difference in float32 with its exact norm,
its leading singular directions, an even split into B and A; then, on the files as written, the error that is left.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from readapt_api.errors import Terminal
from readapt_runtime.difference import CheckpointPair, Difference, frobenius
from readapt_runtime.extract.ranks import Choice, RankPolicy
from readapt_runtime.extract.report import ExtractReport, ModuleReport, SidecarReport
from readapt_runtime.extract.sidecar import why_not_lora, write_sidecar
from readapt_runtime.lora_format import LoraAdapter, LoraModule, read_adapter, write_adapter
from readapt_runtime.lowrank import decompose
from readapt_runtime.progress import Log
from readapt_runtime.threads import fitting_threads

_ROWS = 256
_TOLERANCE = 2e-3
"""Of the measured relative error against the one that the kept energy promises."""
_LOUD_SHARE = 0.01


class NothingToExtract(Terminal):
    """No linear module that may become LoRA differs between the two checkpoints."""


class ExtractionFailed(Terminal):
    """The factors that were written do not approximate the difference as they should."""


@dataclass(frozen=True, slots=True)
class Extraction:
    """What ``extract`` left in the folder."""

    folder: Path
    rank: int
    report: ExtractReport


@dataclass(frozen=True, slots=True)
class _Module:
    """One extracted module before it is verified."""

    change: Difference
    choice: Choice
    spectrum: tuple[float, ...]
    iterations: int
    factors: LoraModule


def extract(base: Path, finetuned: Path, out: Path, policy: RankPolicy, log: Log) -> Extraction:
    """Writes adapter, sidecar and report into ``out``.

    Raises DifferentModels, BadWeights, UnsupportedModel for the inputs, NothingToExtract when there is no change that
    LoRA can carry, ExtractionFailed when the written factors are not as good as their singular values say.
    """
    out.mkdir(parents=True, exist_ok=True)
    with CheckpointPair(base, finetuned) as pair, fitting_threads(pair.largest):
        targeted = [name for name in pair.shapes if policy.targets_module(name)]
        if not targeted:
            raise NothingToExtract(f"target modules {', '.join(policy.targets)} name no linear module of the base")
        modules = _decompose_all(pair, targeted, policy, log)
        if not modules:
            raise NothingToExtract(f"none of {len(targeted)} linear modules differs from the base")
        adapter = LoraAdapter({name: module.factors for name, module in modules.items()})
        write_adapter(out, adapter, base.name)
        sidecar = _left_over(pair, targeted)
        write_sidecar(out, pair.new, list(sidecar))
        errors = dict(_verify(pair, out, modules, log))
    report = _report(modules, errors, sidecar, unchanged=len(targeted) - len(modules), rank=adapter.rank)
    for warning in report.warnings:
        log.warning("extraction", message=warning)
    report.write(out)
    return Extraction(out, adapter.rank, report)


def _decompose_all(pair: CheckpointPair, names: list[str], policy: RankPolicy, log: Log) -> dict[str, _Module]:
    modules: dict[str, _Module] = {}
    for done, name in enumerate(names):
        change = pair.linear(name)
        if change.norm > 0:
            modules[name] = _decompose_one(name, change, policy)
        log.progress(0.7 * (done + 1) / len(names), f"extracting {name}")
    return modules


def _decompose_one(name: str, change: Difference, policy: RankPolicy) -> _Module:
    found = decompose(change.delta, policy.computed, seed=zlib.crc32(name.encode()))
    choice = policy.choose(found.s, change.norm)
    factors = found.factors(choice.rank)
    module = LoraModule(name, a=factors.right.contiguous(), b=factors.left.contiguous(), scale=1.0)
    shares = (found.s.double().square().cumsum(0) / change.norm**2).clamp_max(1.0)
    spectrum = tuple(round(share, 6) for share in shares.tolist())
    return _Module(change.without_delta(), choice, spectrum, found.iterations, module)


def _left_over(pair: CheckpointPair, targeted: list[str]) -> dict[str, SidecarReport]:
    """Every changed tensor that is not in the adapter; its share is filled in by the report."""
    left = {
        name: SidecarReport(reason=why_not_lora(name), norm=pair.other(name).norm, share=0.0) for name in pair.others
    }
    for module in set(pair.shapes) - set(targeted):
        change = pair.linear(module)
        left[change.name] = SidecarReport(reason="not among the target modules", norm=change.norm, share=0.0)
    return {name: left[name] for name in sorted(left) if left[name].norm > 0}


def _verify(pair: CheckpointPair, out: Path, modules: dict[str, _Module], log: Log) -> Iterator[tuple[str, float]]:
    """(module, ‖ΔW - B A‖ / ‖ΔW‖), from the files as written and the checkpoints read once more."""
    written = read_adapter(out, pair.shapes)
    for done, (name, module) in enumerate(modules.items()):
        error = _residual(pair.linear(name).delta, written.modules[name]) / module.change.norm
        promised = max(0.0, 1.0 - module.choice.energy) ** 0.5
        if abs(error - promised) > _TOLERANCE:
            raise ExtractionFailed(f"{name}: relative error {error:.4f}, its singular values promise {promised:.4f}")
        log.progress(0.7 + 0.3 * (done + 1) / len(modules), f"verifying {name}")
        yield name, error


def _residual(delta: torch.Tensor, module: LoraModule) -> float:
    """‖ΔW - s·B A‖_F, some rows at a time: the product of the factors is never held as a whole."""
    squares = 0.0
    for at in range(0, delta.shape[0], _ROWS):
        rows = slice(at, at + _ROWS)
        squares += frobenius(torch.addmm(delta[rows], module.b[rows], module.a, alpha=-module.scale)) ** 2
    return math.sqrt(squares)


def _report(
    modules: dict[str, _Module], errors: dict[str, float], sidecar: dict[str, SidecarReport], unchanged: int, rank: int
) -> ExtractReport:
    linear = sum(m.change.norm**2 for m in modules.values())
    beside = sum(s.norm**2 for s in sidecar.values())
    kept = sum(m.choice.energy * m.change.norm**2 for m in modules.values())
    residual = sum((errors[name] * m.change.norm) ** 2 for name, m in modules.items())
    shares = {n: s.model_copy(update={"share": s.norm**2 / (linear + beside)}) for n, s in sidecar.items()}
    reports = {name: _module_report(module, errors[name]) for name, module in modules.items()}
    return ExtractReport(
        rank=rank,
        norm=(linear + beside) ** 0.5,
        energy=kept / (linear + beside),
        sidecar_share=beside / (linear + beside),
        relative_error=(residual / linear) ** 0.5,
        modules=reports,
        sidecar=shares,
        unchanged=unchanged,
        warnings=tuple(_warnings(reports, shares)),
    )


def _module_report(module: _Module, error: float) -> ModuleReport:
    change, choice, factors = module.change, module.choice, module.factors
    return ModuleReport(
        shape=(factors.b.shape[0], factors.a.shape[1]),
        rank=choice.rank,
        norm=change.norm,
        relative_norm=change.norm / change.old_norm if change.old_norm else 1.0,
        energy=choice.energy,
        spectrum=module.spectrum,
        relative_error=error,
        capped=choice.capped,
        iterations=module.iterations,
    )


def _warnings(modules: dict[str, ModuleReport], sidecar: dict[str, SidecarReport]) -> Iterator[str]:
    capped = [name for name, module in modules.items() if module.capped]
    if capped:
        worst = min(capped, key=lambda name: modules[name].energy)
        yield (
            f"the maximum rank keeps {len(capped)} of {len(modules)} modules below the energy that was asked for; "
            f"the least is {modules[worst].energy:.1%} in {worst}"
        )
    if sidecar:
        share = sum(s.share for s in sidecar.values())
        loud = sorted((n for n, s in sidecar.items() if s.share >= _LOUD_SHARE), key=lambda n: -sidecar[n].share)
        named = f", most of it in {', '.join(loud[:3])}" if loud else ""
        yield f"{len(sidecar)} changed tensors are not in the adapter and hold {share:.2%} of the change{named}"
