"""``readapt report``."""

from __future__ import annotations

from pathlib import Path

from readapt_runtime.report.findings import read_findings
from readapt_runtime.report.page import render


def run(path: Path, out: Path | None) -> dict[str, object]:
    """Writes the page of what is at ``path`` and returns what to print. Raises BadFindings; OSError for ``out``."""
    findings, beside = read_findings(path)
    page = out or beside
    page.write_text(render(findings), encoding="utf-8")
    return {"report": str(page)}
