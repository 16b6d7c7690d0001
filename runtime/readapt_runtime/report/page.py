"""The page: a verdict, what was tried, the figures, and everything that the result depends on.

In: ``Findings``. Out: one HTML document that loads nothing and runs nothing. jinja2 escapes all text; only the figures,
which matplotlib has escaped, go in as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from readapt_api.jobs import GateVerdict, JobKind
from readapt_runtime.drift.folder import DriftReport
from readapt_runtime.report import figures, tables
from readapt_runtime.report.findings import Findings, Learning
from readapt_runtime.report.tables import Table
from readapt_runtime.report.verdict import Verdict, judge

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
)


_WORK = {
    JobKind.DRIFT: "drift",
    JobKind.EXTRACT: "extraction",
    JobKind.TRAIN: "training",
    JobKind.LEARN: "learning",
    JobKind.ADAPT: "repair",
}


@dataclass(frozen=True, slots=True)
class _Figure:
    id: str
    title: str
    caption: str
    svg: Markup


@dataclass(frozen=True, slots=True)
class _Page:
    title: str
    verdict: Verdict
    warnings: tuple[str, ...]
    results: tuple[Table, ...]
    figures: tuple[_Figure, ...]
    circumstances: tuple[Table, ...]


def render(findings: Findings) -> str:
    """The whole document."""
    page = _Page(
        title=f"{findings.name}: {_work(findings)}",
        verdict=judge(findings),
        warnings=() if findings.extraction is None else findings.extraction.warnings,
        results=tables.results(findings),
        figures=tuple(_figures(findings)),
        circumstances=tables.circumstances(findings),
    )
    return _TEMPLATES.get_template("page.html.jinja").render(page=page).lstrip()


def _work(found: Findings) -> str:
    """By the request; a folder of ``extract`` or ``drift`` has none."""
    kind = "drift" if found.drift is not None else "extract" if found.extraction is not None else "adapt"
    return _WORK[JobKind(found.request.get("kind", kind))]


def _figures(found: Findings) -> Iterator[_Figure]:
    if found.rungs:
        yield _scores(found)
    for number, search in enumerate(found.searches, 1):
        yield _Figure(
            f"search-{number}",
            "The search for a starting point",
            "Every trial of α·ΔW + β·D by number: (1, 0) are the old weights, (0, 0) is the new base alone, β = -1 is "
            "the way back to the old base. Darker is better; a cross kept too little of the new base; the ring is "
            "where tuning started.",
            Markup(figures.search_surface(search, number)),
        )
    for number, learning in enumerate((part for part in found.learnings if len(part.curve) > 1), 1):
        yield _Figure(
            f"learning-{number}",
            f"Tuning: {learning.name}" if learning.name else "Training",
            f"Over the steps: {_curves(learning)}. The checkpoint of step {learning.best} was kept.",
            Markup(figures.learning_curves(learning, _floor(found), number)),
        )
    if found.lessons:
        yield _Figure(
            "lessons",
            "Learning, task by task",
            "Above, the loss of each task's training batches over its steps. Below, after each task, how many of the "
            "examples set aside of every task so far are answered right among the answers of all of them.",
            Markup(figures.lesson_curves(found.lessons)),
        )
    if found.extraction is not None and found.extraction.modules:
        asked = found.settings.get("energy")
        spectra = {name: module.spectrum for name, module in found.extraction.modules.items()}
        yield _Figure(
            "energy",
            "Energy per module",
            "Share of a module's change ‖ΔW‖² in its first directions, one line per layer (the first dark, the last "
            "bright). A line that is flat early needs few ranks.",
            Markup(figures.energy_spectra(spectra, None if asked is None else float(asked))),
        )
    if found.drift is not None and found.drift.modules:
        yield from _drift_figures(found.drift)


def _scores(found: Findings) -> _Figure:
    """Nothing gates what was made of examples alone."""
    if all(rung.verdict is GateVerdict.NOT_NEEDED for rung in found.rungs):
        return _Figure(
            "scores",
            "Beside the base alone",
            "The measured gain over the base without the adapter, and its interval.",
            Markup(figures.gate_intervals(found.rungs, None)),
        )
    return _Figure(
        "gate",
        "The gate",
        "Per rung the measured gain over the reference and its interval. A rung passes when the whole interval is "
        "to the right of the dashed line, the regression that was allowed.",
        Markup(figures.gate_intervals(found.rungs, found.margin)),
    )


def _curves(learning: Learning) -> str:
    parts = ["the loss of the training batches", "the score on the stopping examples"]
    if learning.target is not None:
        parts[-1] += ", dashed the old pair's"
    if learning.retentions:
        parts.append("retention, dashed what it must reach")
    return "; ".join(parts)


def _drift_figures(report: DriftReport) -> Iterator[_Figure]:
    yield _Figure(
        "norms",
        "How far each module moved",
        "‖D‖ / ‖W‖ of the difference D of the two versions, one line per kind of module over the layers.",
        Markup(figures.relative_norms({name: module.relative_norm for name, module in report.modules.items()})),
    )
    spectra = {name: module.captured for name, module in report.modules.items() if module.captured}
    if spectra:
        yield _Figure(
            "energy",
            "Spectra",
            "Share of a module's ‖D‖² in its first singular directions, one line per layer (the first dark, the last "
            "bright). A line that rises fast is a change in few directions.",
            Markup(figures.energy_spectra(spectra, None)),
        )


def _floor(found: Findings) -> float | None:
    return next((rung.retention_floor for rung in found.rungs if rung.retention_floor is not None), None)
