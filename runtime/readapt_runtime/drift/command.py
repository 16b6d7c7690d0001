"""``readapt drift``."""

from __future__ import annotations

from pathlib import Path

import torch

from readapt_runtime.adapt.data import read_examples
from readapt_runtime.adapt.forecast import few, from_examples
from readapt_runtime.difference import CheckpointPair
from readapt_runtime.drift.folder import DriftReport, read_drift
from readapt_runtime.drift.measurement import measure
from readapt_runtime.drift.overlap import Overlap, overlap
from readapt_runtime.drift.prediction import facts
from readapt_runtime.examples import BadData
from readapt_runtime.lora_format import LoraAdapter, read_adapter
from readapt_runtime.out_folder import make_out
from readapt_runtime.progress import ConsoleLog
from readapt_runtime.report.keeping import write_report

_SHOWN = 10
_DIRECTIONS = 8


def run(
    old: Path, new: Path, out: Path, device: torch.device, adapter: Path | None = None, examples: Path | None = None
) -> dict[str, object]:
    """Measures the drift old -> new into ``out``, with its page, and returns what to print.

    With ``adapter`` also what it would lose if it were copied: from the weights, and from ``examples`` where they are
    given, which are asked on ``device``. Raises BadOut, BadData, BadWeights and as ``measure`` does.
    """
    make_out(out)
    lora = _read(old, new, adapter, examples)
    with ConsoleLog() as log:
        report = measure(old, new, out, log)
        write_report(out, log)
    met = None if lora is None else overlap(lora, read_drift(out))
    found = {
        "out": str(out),
        "relative_norm": report.relative_norm,
        "captured_energy": report.captured_energy,
        "modules": len(report.modules),
        "moved": report.moved,
        "most_moved": _most_moved(report, met),
    }
    if lora is None or met is None:
        return found
    seen = {} if examples is None else {"examples": from_examples(old, new, lora, examples, device)}
    return {**found, "copy": {**facts(met), **seen}}


def _most_moved(report: DriftReport, met: Overlap | None) -> dict[str, dict[str, object]]:
    """The rest is in drift.json; where a module meets the adapter, how."""
    shown: dict[str, dict[str, object]] = {}
    for name, module in report.most_moved(_SHOWN):
        shown[name] = {
            "relative_norm": module.relative_norm,
            "captured_energy": module.captured_energy,
            "singular_values": module.singular_values[:_DIRECTIONS],
        }
        if met is not None and name in met.modules:
            shown[name] |= {part: getattr(met.modules[name], part) for part in ("read", "written", "along")}
    return shown


def _read(old: Path, new: Path, adapter: Path | None, examples: Path | None) -> LoraAdapter | None:
    """Checks all that is given before anything is measured."""
    if adapter is None:
        if examples is not None:
            raise BadData("--examples are for the prediction of what --adapter will lose: give both")
        return None
    if examples is not None:
        few(read_examples(examples))
    with CheckpointPair(old, new) as pair:
        return read_adapter(adapter, pair.shapes)
