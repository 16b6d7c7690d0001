"""From two checkpoints to an adapter, tensor by tensor.

In: a base and a full fine-tuned checkpoint of it. Out: a folder with the adapter, ``sidecar.safetensors`` and
``report.json``. Next: the Job publishes it as a variant. Per module: the difference in float32 with its exact norm and
its leading singular directions (``directions``), kept on disk until the policy has seen all modules; then the adapter,
what no adapter can hold, and, on the files as written, the error that is left.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from readapt_api.errors import Terminal
from readapt_runtime.difference import Change, CheckpointPair
from readapt_runtime.directions import leading_directions
from readapt_runtime.extract.merged_base import MERGED_BASE, write_merged_base
from readapt_runtime.extract.ranks import Choice, RankPolicy, Spectrum
from readapt_runtime.extract.report import Extracted, ExtractReport, Findings, make_report
from readapt_runtime.extract.sidecar import write_sidecar
from readapt_runtime.extract.spool import Spool, open_spool
from readapt_runtime.extract.verification import verify
from readapt_runtime.lora_format import LoraModule, write_adapter_stream
from readapt_runtime.progress import Log
from readapt_runtime.rest import Rest
from readapt_runtime.threads import fitting_threads


class NothingToExtract(Terminal):
    """No linear module that may become LoRA differs between the two checkpoints."""


@dataclass(frozen=True, slots=True)
class Extraction:
    """What ``extract`` left in the folder."""

    folder: Path
    rank: int
    report: ExtractReport


@dataclass(frozen=True, slots=True)
class Options:
    """How to extract, beside the rank policy."""

    device: torch.device | None = None
    """None: the CPU."""
    merged_base: bool = False
    """Write a base with everything in it that is not in the adapter."""


def extract(
    base: Path, finetuned: Path, out: Path, policy: RankPolicy, log: Log, options: Options = Options()
) -> Extraction:
    """Writes adapter, sidecar and report into ``out``, and with ``options.merged_base`` a folder of that name.

    Raises DifferentModels, UnknownVocabulary, BadWeights, UnsupportedModel for the inputs, BadPolicy for a budget that
    is too small, NothingToExtract when there is no change that LoRA can carry, ExtractionFailed when the written
    factors are not as good as their singular values say.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (
        CheckpointPair(base, finetuned, options.device) as pair,
        fitting_threads(pair.largest),
        open_spool(out) as spool,
    ):
        targeted = [name for name in pair.shapes if policy.targets_module(name)]
        if not targeted:
            raise NothingToExtract(f"target modules {', '.join(policy.targets)} name no linear module of the base")
        beside = _measure_beside(pair, targeted)
        found = _decompose(pair, targeted, policy, spool, log)
        if not found:
            raise NothingToExtract(_why_nothing(targeted, beside))
        choices = policy.choose({name: module.spectrum for name, module in found.items()})
        _write_adapter(out, pair, choices, spool, base.name)
        write_sidecar(out, pair.new, [change.name for change in beside.changes if change.norm])
        extracted = {name: module.chosen(choices[name]) for name, module in found.items()}
        errors = dict(verify(out, pair, extracted, log))
        if options.merged_base:
            write_merged_base(out / MERGED_BASE, pair, targeted)
    report = make_report(extracted, errors, beside, policy)
    for warning in report.warnings:
        log.warning("extraction", message=warning)
    report.write(out)
    return Extraction(out, report.rank, report)


@dataclass(frozen=True, slots=True)
class _Found:
    """One changed module whose rank is not decided yet."""

    change: Change
    spectrum: Spectrum
    iterations: int

    def chosen(self, choice: Choice) -> Extracted:
        return Extracted(self.change, self.spectrum, choice, self.iterations)


def _decompose(
    pair: CheckpointPair, targeted: Sequence[str], policy: RankPolicy, spool: Spool, log: Log
) -> dict[str, _Found]:
    """The changed modules, in the order of the base; their factors go to ``spool``."""
    found: dict[str, _Found] = {}
    for done, (name, change, directions) in enumerate(leading_directions(pair, targeted, policy.computed), start=1):
        if directions is not None:
            spool.put(name, directions.factors(policy.computed))
            spectrum = Spectrum(pair.shapes[name], directions.s.cpu(), change.norm)
            found[name] = _Found(change, spectrum, directions.iterations)
        log.progress(0.7 * done / len(targeted), f"extracting {name}")
    return {name: found[name] for name in targeted if name in found}


def _why_nothing(targeted: Sequence[str], beside: Findings) -> str:
    others = [change.name for change in beside.changes if change.norm]
    found = f"none of {len(targeted)} linear modules differs from the base"
    return f"{found}; what differs, no adapter holds: {', '.join(others[:3])}" if others else found


def _write_adapter(
    out: Path, pair: CheckpointPair, choices: Mapping[str, Choice], spool: Spool, base_name: str
) -> None:
    ranks = {name: choice.rank for name, choice in choices.items() if choice.rank}
    write_adapter_stream(out, ranks, pair.shapes, _modules(ranks, spool), base_name)


def _modules(ranks: Mapping[str, int], spool: Spool) -> Iterable[LoraModule]:
    for name, rank in ranks.items():
        factors = spool.get(name, rank)
        yield LoraModule(name, a=factors.right, b=factors.left, scale=1.0)


def _measure_beside(pair: CheckpointPair, targeted: Sequence[str]) -> Findings:
    """Everything that is not among the targeted modules."""
    rest = Rest(pair)
    changes = [rest.measure(name) for name in rest.names]
    for module in sorted(set(pair.shapes) - set(targeted)):
        changes.append(pair.subtract(module, torch.empty(pair.shapes[module], device=pair.device)))
    unchanged = [f"{name}.weight" for name in targeted]
    return Findings(changes, unchanged, rest.copies, pair.unlike)
