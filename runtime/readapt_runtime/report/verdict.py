"""What came of a Job, in one sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from readapt_api.jobs import GateVerdict
from readapt_runtime.drift.folder import DriftReport
from readapt_runtime.report.findings import Findings


@dataclass(frozen=True, slots=True)
class Verdict:
    """``color`` is a class of the page's style; empty where nothing was tested."""

    color: Literal["passed", "failed", ""]
    sentence: str


def judge(found: Findings) -> Verdict:
    """The last rung decided."""
    if found.drift is not None:
        return Verdict("", _moved(found.drift))
    if not found.rungs:
        return Verdict("", f"{_kept(found)}{_learned(found)}No gate was asked.")
    from readapt_runtime.adapt import ladder  # and with it scipy, which an extraction has no need of

    last = found.rungs[-1]
    if last.verdict is GateVerdict.NOT_NEEDED:
        return Verdict("", f"{last.origin}, with nothing to compare it with: {last.message}.")
    if ladder.passes(last):
        return Verdict("passed", f"Passed as {last.origin}. {last.message}.")
    tried = f"after {len(found.rungs)} rungs " if len(found.rungs) > 1 else ""
    return Verdict("failed", f"No variant passed {tried}({ladder.reason(found.rungs)}). {last.message}.")


def _learned(found: Findings) -> str:
    names = ", ".join(lesson.task for lesson in found.lessons)
    return f"Learned one after the other: {names}. " if names else ""


def _moved(report: DriftReport) -> str:
    if not report.moved:
        return f"The versions are equal in all {len(report.modules)} linear modules."
    return (
        f"{report.moved} of {len(report.modules)} linear modules moved, by {report.relative_norm:.2%} of the norm of "
        f"all; {report.rank} directions of each hold {report.captured_energy:.1%} of the change."
    )


def _kept(found: Findings) -> str:
    if found.extraction is None:
        return ""
    report = found.extraction
    return (
        f"Rank {report.rank} keeps {report.energy:.1%} of the change in {len(report.modules)} modules; "
        f"{report.sidecar_share:.1%} of it is in the sidecar. "
    )
