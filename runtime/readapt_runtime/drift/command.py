"""``readapt drift``."""

from __future__ import annotations

from pathlib import Path

from readapt_runtime.drift.measurement import measure
from readapt_runtime.out_folder import make_out
from readapt_runtime.progress import ConsoleLog


def run(old: Path, new: Path, out: Path) -> dict[str, object]:
    """Measures the drift old -> new into ``out`` and returns what to print. Raises BadOut and as ``measure`` does."""
    make_out(out)
    with ConsoleLog() as log:
        summary = measure(old, new, out, log)
    return {
        "out": str(out),
        "relative_norm": summary.relative_norm,
        "captured_energy": summary.captured_energy,
        "modules": summary.modules,
        "moved": summary.moved,
    }
