"""The page of work that is done. A picture costs nobody the result: what cannot be drawn is a line in the log."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from readapt_api.digest import canonical_json
from readapt_api.jobs import DriftOutcome, DriftRequest, Outcome
from readapt_runtime.drift.folder import DriftReport
from readapt_runtime.progress import Log
from readapt_runtime.store import Store


def keep_report(store: Store, outcome: Outcome, evidence: Mapping[str, Any], log: Log) -> Outcome:
    """The outcome with the place of its page in the store, or as it is. Raises what the store raises."""

    def draw() -> str:
        from readapt_runtime.report.findings import Findings
        from readapt_runtime.report.page import render

        return render(Findings.of_evidence(json.loads(canonical_json(evidence)), outcome.variant))

    page = _drawn(draw, outcome.name, log)
    if page is None:
        return outcome
    return outcome.model_copy(update={"report": store.write_report(outcome.input_hash, page)})


def keep_drift_report(
    store: Store, request: DriftRequest, report: DriftReport, outcome: DriftOutcome, log: Log
) -> DriftOutcome:
    """As ``keep_report``, of a measured drift."""

    def draw() -> str:
        from readapt_runtime.report.findings import Findings
        from readapt_runtime.report.page import render

        return render(Findings.of_drift(request, report))

    page = _drawn(draw, "drift", log)
    if page is None:
        return outcome
    return outcome.model_copy(update={"report": store.write_report(outcome.input_hash, page)})


def write_report(folder: Path, log: Log) -> None:
    """The page of what a command left in ``folder``, into it. Raises OSError."""

    def draw() -> str:
        from readapt_runtime.report.findings import read_findings
        from readapt_runtime.report.page import render

        return render(read_findings(folder)[0])

    page = _drawn(draw, folder.resolve().name, log)
    if page is not None:
        (folder / "report.html").write_text(page, encoding="utf-8")


def _drawn(draw: Callable[[], str], name: str, log: Log) -> str | None:
    try:
        return draw()
    except Exception as error:  # noqa: BLE001 - whatever a plot stumbles over, the result stands without it
        log.warning("no report", name=name, why=repr(error))
        return None
