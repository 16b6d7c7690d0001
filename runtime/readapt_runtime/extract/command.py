"""``readapt extract``."""

from __future__ import annotations

import tempfile
from pathlib import Path

from readapt_runtime.extract.extraction import Options, extract
from readapt_runtime.extract.merged_base import MERGED_BASE
from readapt_runtime.extract.ranks import RankPolicy
from readapt_runtime.out_folder import make_out
from readapt_runtime.progress import ConsoleLog
from readapt_runtime.report.keeping import write_report


def run(base: Path, finetuned: Path, out: Path, policy: RankPolicy, options: Options) -> dict[str, object]:
    """Extracts an adapter into ``out`` and returns what to print. Raises BadOut, and what ``extract`` raises."""
    make_out(out)
    with ConsoleLog() as log, tempfile.TemporaryDirectory(dir=out, prefix=".extracting-") as unverified:
        found = extract(base, finetuned, Path(unverified), policy, log, options)
        for file in Path(unverified).iterdir():
            file.rename(out / file.name)
        write_report(out, log)
    report = found.report
    return {
        "out": str(out),
        **({"merged_base": str(out / MERGED_BASE)} if options.merged_base else {}),
        "rank": found.rank,
        "parameters": report.parameters,
        "modules": sum(module.rank > 0 for module in report.modules.values()),
        "energy": report.energy,
        "sidecar_share": report.sidecar_share,
        "relative_error": report.relative_error,
        "warnings": list(report.warnings),
    }
