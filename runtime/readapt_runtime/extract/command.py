"""``readapt extract``."""

from __future__ import annotations

import tempfile
from pathlib import Path

from readapt_runtime.extract.extraction import extract
from readapt_runtime.extract.ranks import RankPolicy
from readapt_runtime.out_folder import make_out
from readapt_runtime.progress import ConsoleLog
from readapt_runtime.report.keeping import write_report


def run(
    base: Path, finetuned: Path, out: Path, rank: int | None, energy: float | None, max_rank: int
) -> dict[str, object]:
    """Extracts an adapter into ``out`` and returns what to print.

    Raises BadPolicy unless one of rank and energy, BadOut, and what ``extract`` raises.
    """
    policy = RankPolicy(fixed=rank, energy=energy, max_rank=max_rank)
    make_out(out)
    with ConsoleLog() as log, tempfile.TemporaryDirectory(dir=out, prefix=".extracting-") as unverified:
        found = extract(base, finetuned, Path(unverified), policy, log)
        for file in Path(unverified).iterdir():
            file.rename(out / file.name)
        write_report(out, log)
    report = found.report
    return {
        "out": str(out),
        "rank": found.rank,
        "modules": len(report.modules),
        "energy": report.energy,
        "sidecar_share": report.sidecar_share,
        "relative_error": report.relative_error,
        "warnings": list(report.warnings),
    }
