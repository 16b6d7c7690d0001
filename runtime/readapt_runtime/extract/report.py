"""report.json of an extraction: what became of every tensor, and how far the result is from the checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import Field

from readapt_api.contract import Contract
from readapt_runtime.difference import Change
from readapt_runtime.extract.ranks import Choice, RankPolicy, Spectrum
from readapt_runtime.extract.sidecar import why_not_lora

EXTRACT_REPORT = "report.json"
_LOUD_SHARE = 0.01


class ModuleReport(Contract):
    """One linear module that changed and was meant for the adapter."""

    shape: tuple[int, int]
    """(out, in)."""
    rank: int
    """0: a budget had nothing left for it, and the adapter does not have it."""
    norm: float
    """‖ΔW‖_F, exact."""
    relative_norm: float
    """‖ΔW‖ / ‖W_base‖."""
    energy: float
    """Share of ‖ΔW‖² in the kept singular values, against the exact norm."""
    spectrum: tuple[float, ...] = ()
    """Share of ‖ΔW‖² in the first singular value, the first two, …: of all that were computed."""
    residual: float = 0.0
    """‖ΔW - B A‖_F, measured on the files that were written."""
    relative_error: float
    """``residual`` / ‖ΔW‖."""
    capped: bool
    """The maximum rank kept the module from its target."""
    iterations: int
    """Of the randomized SVD; 0 when all singular values were computed."""


class RowsReport(Contract):
    """A vocabulary's rows, by token."""

    changed: int
    added: int
    removed: int
    moved: int


class SidecarReport(Contract):
    """One changed tensor that is not in the adapter; its new values are in the sidecar."""

    reason: str
    norm: float
    share: float
    """Of ‖ΔW‖² over all tensors."""
    rows: RowsReport | None = None


class ExtractReport(Contract):
    """report.json. Every tensor of the checkpoint is in one of ``modules``, ``sidecar`` and ``skipped``."""

    version: int = 1
    policy: dict[str, int | float | list[str]] = Field(default_factory=dict)
    """As it was asked for."""
    rank: int
    """The largest of a module."""
    parameters: int = 0
    """Numbers in the factors of the adapter."""
    norm: float
    """‖ΔW‖_F over all tensors of the checkpoint."""
    energy: float
    """Share of that ‖ΔW‖² which the adapter holds."""
    sidecar_share: float
    """Share of it that no adapter can hold."""
    relative_error: float
    """Over the linear modules together that were meant for the adapter."""
    modules: dict[str, ModuleReport]
    sidecar: dict[str, SidecarReport]
    skipped: dict[str, str] = Field(default_factory=dict)
    """Tensor -> why it is in neither."""
    unchanged: int
    """Linear modules without any change."""
    warnings: tuple[str, ...]

    def write(self, folder: Path) -> None:
        text = json.dumps(self.to_wire(), sort_keys=True) + "\n"  # indented it takes ten times as long
        (folder / EXTRACT_REPORT).write_text(text, encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Extracted:
    """One changed module and the rank it was given."""

    change: Change
    spectrum: Spectrum
    choice: Choice
    iterations: int


@dataclass(frozen=True, slots=True)
class Findings:
    """What was found beside the modules that the adapter is for."""

    changes: Sequence[Change]
    """Of all other tensors, those without any change included."""
    targeted: Sequence[str]
    """Tensors of the modules that the adapter is for."""
    copies: Mapping[str, str]
    """See ``rest.Rest``."""
    unlike: Sequence[str]
    """See ``difference.CheckpointPair``."""


def make_report(
    extracted: Mapping[str, Extracted], errors: Mapping[str, float], beside: Findings, policy: RankPolicy
) -> ExtractReport:
    """``errors``: measured relative error of each module in the adapter; of the others nothing was kept."""
    linear = sum(m.change.norm**2 for m in extracted.values())
    total = linear + sum(change.norm**2 for change in beside.changes)
    modules = {name: _module_report(module, errors.get(name, 1.0)) for name, module in extracted.items()}
    moved = sorted((change for change in beside.changes if change.norm), key=lambda change: change.name)
    sidecar = {change.name: _sidecar_report(change, beside, total) for change in moved}
    return ExtractReport(
        policy={key: value for key, value in asdict(policy).items() if value not in (None, ())},
        rank=max(module.rank for module in modules.values()),
        parameters=sum(module.rank * sum(module.shape) for module in modules.values()),
        norm=total**0.5,
        energy=sum(module.energy * module.norm**2 for module in modules.values()) / total,
        sidecar_share=sum(entry.share for entry in sidecar.values()),
        relative_error=(sum(module.residual**2 for module in modules.values()) / linear) ** 0.5,
        modules=modules,
        sidecar=sidecar,
        skipped=_skipped(extracted, beside),
        unchanged=len(beside.targeted) - len(extracted),
        warnings=tuple(_warnings(modules, sidecar, beside)),
    )


def _module_report(module: Extracted, error: float) -> ModuleReport:
    change, choice = module.change, module.choice
    return ModuleReport(
        shape=module.spectrum.shape,
        rank=choice.rank,
        norm=change.norm,
        relative_norm=change.relative,
        energy=choice.energy,
        spectrum=tuple(round(share, 6) for share in module.spectrum.captured.tolist()),
        residual=error * change.norm,
        relative_error=error,
        capped=choice.capped,
        iterations=module.iterations,
    )


def _sidecar_report(change: Change, beside: Findings, total: float) -> SidecarReport:
    reason = "not among the target modules" if "_proj.weight" in change.name else why_not_lora(change.name)
    rows = RowsReport(**asdict(change.rows)) if change.rows else None
    return SidecarReport(reason=reason, norm=change.norm, share=change.norm**2 / total, rows=rows)


def _skipped(extracted: Mapping[str, Extracted], beside: Findings) -> dict[str, str]:
    changed = {module.change.name for module in extracted.values()}
    still = [change.name for change in beside.changes if not change.norm]
    still += [name for name in beside.targeted if name not in changed]
    return dict.fromkeys(sorted(still), "unchanged") | dict(beside.copies)


def _warnings(
    modules: Mapping[str, ModuleReport], sidecar: Mapping[str, SidecarReport], beside: Findings
) -> Iterator[str]:
    capped = [name for name, module in modules.items() if module.capped]
    if capped:
        worst = min(capped, key=lambda name: modules[name].energy)
        yield (
            f"the maximum rank keeps {len(capped)} of {len(modules)} modules short of what was asked for; "
            f"the least energy is {modules[worst].energy:.1%} in {worst}"
        )
    if dropped := sum(module.rank == 0 for module in modules.values()):
        yield f"the budget leaves {dropped} of {len(modules)} changed modules out of the adapter"
    if sidecar:
        share = sum(s.share for s in sidecar.values())
        loud = sorted((n for n, s in sidecar.items() if s.share >= _LOUD_SHARE), key=lambda n: -sidecar[n].share)
        named = f", most of it in {', '.join(loud[:3])}" if loud else ""
        yield f"{len(sidecar)} changed tensors are not in the adapter and hold {share:.2%} of the change{named}"
    for change in beside.changes:
        if change.rows and (change.rows.added or change.rows.removed or change.rows.moved):
            yield (
                f"{change.name}: the checkpoint has another vocabulary ({change.rows.added} rows added, "
                f"{change.rows.removed} removed, {change.rows.moved} moved); an adapter is used with that of the base"
            )
    yield from (f"{difference}: an adapter does not carry that" for difference in beside.unlike)
