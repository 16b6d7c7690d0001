"""What a page is made of, read out of the evidence that Jobs and commands leave.

In: evidence of a Job, a measured drift, or a folder that a command of ``readapt`` wrote. Out: ``Findings``.
What a rung wrote down about itself is found by what it holds (trials, a curve), wherever it stands in the evidence, so
that a new rung is drawn without a change here. Next: ``figures`` and ``page``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from readapt_api.contract import Digest
from readapt_api.digest import hex_of
from readapt_api.errors import Terminal
from readapt_api.jobs import DriftRequest, JobKind, Outcome, RungResult
from readapt_runtime.drift.folder import DRIFT_REPORT, DriftReport
from readapt_runtime.extract.report import EXTRACT_REPORT, ExtractReport

EVIDENCE = "evidence.json"
LESSONS = "lessons.json"
REPORT = "report.html"
_DOCUMENTS = (EVIDENCE, EXTRACT_REPORT, DRIFT_REPORT, LESSONS)
_SUFFIX = ".evidence.json"


class BadFindings(Terminal):
    """A path that holds no evidence, or evidence that is none of ours."""


@dataclass(frozen=True, slots=True)
class Search:
    """The trials of one search over α and β, in their order."""

    trials: tuple[Mapping[str, Any], ...]
    """alpha, beta, loss, retention, floor."""
    start: Mapping[str, Any]
    """The point that was chosen; empty when none was."""

    @property
    def feasible(self) -> tuple[bool, ...]:
        return tuple(_feasible(trial) for trial in self.trials)


@dataclass(frozen=True, slots=True)
class Learning:
    """One tuning."""

    name: str
    """The place in the evidence: ``relora``."""
    curve: tuple[Mapping[str, Any], ...]
    """step, score, retention."""
    train_losses: tuple[float, ...]
    target: float | None
    """What is good enough: the old pair's own score on the same examples; None when no rung wrote it down."""
    best: int
    """The step whose checkpoint was kept."""

    @property
    def retentions(self) -> tuple[tuple[int, float], ...]:
        """(step, retention) where it was measured."""
        seen = [(int(e["step"]), _value(e.get("retention"))) for e in self.curve]
        return tuple((step, value) for step, value in seen if value is not None)


@dataclass(frozen=True, slots=True)
class Lesson:
    """One task of a sequence."""

    task: str
    losses: tuple[float, ...]
    """Of training, step by step."""
    accuracies: tuple[float, ...]
    """After it, on each task so far."""


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything that the page tells."""

    name: str
    evidence: Mapping[str, Any]
    rungs: tuple[RungResult, ...] = ()
    searches: tuple[Search, ...] = ()
    learnings: tuple[Learning, ...] = ()
    lessons: tuple[Lesson, ...] = ()
    extraction: ExtractReport | None = None
    drift: DriftReport | None = None
    variant: Digest | None = None

    @classmethod
    def of_evidence(cls, evidence: Mapping[str, Any], variant: Digest | None = None) -> Findings:
        """Raises BadFindings for a document that is no evidence of ours."""
        try:
            request = evidence["request"]
            found = evidence.get("extraction")
            return cls(
                name=str(request["items"][0]["name"] if "items" in request else request["name"]),
                evidence=evidence,
                rungs=tuple(RungResult.model_validate(rung) for rung in evidence.get("rungs", ())),
                searches=tuple(_search(part) for _, part in _parts(evidence, "trials")),
                learnings=tuple(_learning(name, part, _target(evidence)) for name, part in _parts(evidence, "curve")),
                lessons=tuple(_lesson(part) for part in evidence.get("lessons", ())),
                extraction=None if found is None else ExtractReport.model_validate(found),
                variant=variant,
            )
        except (LookupError, TypeError, AttributeError, ValidationError) as error:
            raise BadFindings(f"no evidence of a Job: {_line(error)}") from error

    @classmethod
    def of_drift(cls, request: DriftRequest, report: DriftReport) -> Findings:
        old, new = (hex_of(digest)[:8] for digest in (request.old_base, request.new_base))
        return cls(f"{old} to {new}", {"request": request.to_wire()}, drift=report)

    @property
    def request(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.evidence.get("request", {})
        return found

    @property
    def settings(self) -> Mapping[str, Any]:
        """Of the one item: what decides about its result beside the bases."""
        item: Mapping[str, Any] = next(iter(self.request.get("items", ())), self.request)
        return item

    @property
    def margin(self) -> float:
        """maxRegression, in the metric's unit."""
        return float(self.settings.get("gate", {}).get("maxRegression", 0.0))


def read_findings(path: Path) -> tuple[Findings, Path]:
    """The findings at ``path``, a folder or a file of evidence, and where their page belongs. Raises BadFindings."""
    if path.is_file():
        stem = path.name.removesuffix(_SUFFIX).removesuffix(".json")
        return _of_file(path), path.with_name(f"{stem}.{REPORT}")
    for name in _DOCUMENTS:
        if (path / name).is_file():
            return _of_file(path / name), path / REPORT
    raise BadFindings(f"{path}: none of {', '.join(_DOCUMENTS)} is there")


def _of_file(path: Path) -> Findings:
    try:
        document = json.loads(path.read_bytes())
        if isinstance(document, dict) and "modules" in document:
            return _of_modules(path.resolve().parent.name, document)
        if isinstance(document, dict) and "lessons" in document and "request" not in document:
            document["request"] = {"kind": JobKind.LEARN, "name": path.resolve().parent.name}
        return Findings.of_evidence(document, _variant(path))
    except (ValueError, BadFindings) as error:
        raise BadFindings(f"{path}: {_line(error)}") from error


def _of_modules(name: str, document: Mapping[str, Any]) -> Findings:
    """What extract and drift say of each module; a drift tells beside them the rest."""
    if "rest" in document:
        return Findings(name, {}, drift=DriftReport.model_validate(document))
    return Findings(name, {}, extraction=ExtractReport.model_validate(document))


def _variant(evidence: Path) -> Digest | None:
    """Out of the result that a Job left beside its evidence."""
    result = evidence.with_name(evidence.name.removesuffix(_SUFFIX) + ".json")
    if not evidence.name.endswith(_SUFFIX) or not result.is_file():
        return None
    return Outcome.model_validate_json(result.read_bytes()).variant


def _parts(document: object, key: str, name: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every object of the evidence that holds a list under ``key``, with the names that lead there."""
    if isinstance(document, dict):
        if isinstance(document.get(key), list):
            yield name, document
        for inner, value in document.items():
            yield from _parts(value, key, f"{name} {inner}".strip())
    elif isinstance(document, list):
        for number, value in enumerate(document, 1):
            yield from _parts(value, key, f"{name} {number}")


def _search(part: Mapping[str, Any]) -> Search:
    return Search(tuple(part["trials"]), part.get("start") or {})


def _learning(name: str, part: Mapping[str, Any], target: float | None) -> Learning:
    return Learning(name, tuple(part["curve"]), tuple(part.get("trainLosses", ())), target, int(part.get("best", 0)))


def _lesson(part: Mapping[str, Any]) -> Lesson:
    return Lesson(str(part["task"]), tuple(part["losses"]), tuple(part["accuracies"]))


def _value(retention: Any) -> float | None:
    """A number, or a number with its error."""
    value: float | None = retention["value"] if isinstance(retention, Mapping) else retention
    return value


def _target(evidence: Mapping[str, Any]) -> float | None:
    """One for all rungs, since all are graded by the same examples."""
    return next((part["target"] for _, part in _parts(evidence, "curve") if "target" in part), None)


def _feasible(trial: Mapping[str, Any]) -> bool:
    retention, floor = trial.get("retention"), trial.get("floor")
    return retention is None or floor is None or retention >= floor


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
