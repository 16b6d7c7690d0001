"""``readapt drift``."""

from __future__ import annotations

from pathlib import Path

from readapt_runtime.adapt.data import read_examples
from readapt_runtime.adapt.forecast import few, from_examples
from readapt_runtime.difference import CheckpointPair
from readapt_runtime.drift.folder import read_drift
from readapt_runtime.drift.measurement import measure
from readapt_runtime.drift.overlap import overlap
from readapt_runtime.drift.prediction import facts
from readapt_runtime.examples import BadData
from readapt_runtime.lora_format import LoraAdapter, read_adapter
from readapt_runtime.out_folder import make_out
from readapt_runtime.progress import ConsoleLog


def run(
    old: Path, new: Path, out: Path, adapter: Path | None = None, examples: Path | None = None
) -> dict[str, object]:
    """Measures the drift old -> new into ``out`` and returns what to print.

    With ``adapter`` also what it would lose if it were copied: from the weights, and from ``examples`` where they are
    given. Raises BadOut, BadData, BadWeights and as ``measure`` does.
    """
    make_out(out)
    lora = _read(old, new, adapter, examples)
    with ConsoleLog() as log:
        summary = measure(old, new, out, log)
    found = {
        "out": str(out),
        "relative_norm": summary.relative_norm,
        "captured_energy": summary.captured_energy,
        "modules": summary.modules,
        "moved": summary.moved,
    }
    if lora is None:
        return found
    copy = facts(overlap(lora, read_drift(out)))
    seen = {} if examples is None else {"examples": from_examples(old, new, lora, examples)}
    return {**found, "copy": {**copy, **seen}}


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
