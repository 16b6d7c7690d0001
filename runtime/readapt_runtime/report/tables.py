"""The tables of a page: results first, then what they depend on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from readapt_api.adaptation import Metric
from readapt_api.artifacts import Origin
from readapt_api.jobs import RungResult
from readapt_runtime.drift.folder import DriftReport
from readapt_runtime.extract.report import ExtractReport
from readapt_runtime.report.findings import Findings, Lesson

_WORST = 10
_DIRECTIONS = 4
_DIGESTS = ("oldBase", "newBase", "drift", "base", "checkpoint", "reference", "data")
_RUNG_HEAD = (
    *("rung", "verdict", "metric", "score", "reference", "gain", "interval", "examples", "retention", "floor"),
    "seconds",
)


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text; the first cell of a row names it."""

    id: str
    title: str
    rows: tuple[tuple[str, ...], ...]
    head: tuple[str, ...] = ()


def results(found: Findings) -> tuple[Table, ...]:
    return tuple(_non_empty(_results(found)))


def circumstances(found: Findings) -> tuple[Table, ...]:
    return tuple(_non_empty(_circumstances(found)))


def _results(found: Findings) -> Iterator[Table]:
    yield Table("rungs", "What was tried", tuple(_rung(rung) for rung in found.rungs), _RUNG_HEAD)
    yield Table("forecast", "What Copy was expected to lose, from the weights alone", tuple(_forecast(found)))
    yield _remembered(found.lessons)
    if found.extraction is not None:
        yield _worst_modules(found.extraction)
        yield _sidecar(found.extraction)
    if found.drift is not None:
        yield _most_moved(found.drift)
        yield _beside(found.drift)


def _circumstances(found: Findings) -> Iterator[Table]:
    evidence, settings = found.evidence, found.settings
    yield Table("settings", "Settings", tuple(_flat({k: v for k, v in settings.items() if k not in _DIGESTS})))
    yield Table("digests", "Digests", tuple(_digests(found)))
    seconds = ((stage, f"{value:.1f}") for stage, value in evidence.get("seconds", {}).items())
    yield Table("seconds", "Seconds", tuple(seconds))
    yield Table("examples", "Examples", tuple(_examples(evidence)))
    yield Table("effect", "What the old weights do for their own base", tuple(_flat(evidence.get("effect") or {})))
    for search in found.searches:
        rows = tuple(
            (str(number), *(_number(trial.get(key)) for key in ("alpha", "beta", "loss", "retention", "floor")))
            for number, trial in enumerate(search.trials, 1)
        )
        yield Table("trials", "Trials of the search", rows, ("trial", "α", "β", "loss", "retention", "floor"))
    made = {k: evidence[k] for k in ("seed", "threads", "dtype", "processor", "versions") if k in evidence}
    yield Table("made-with", "Made with", tuple(_flat(made)))


def _rung(rung: RungResult) -> tuple[str, ...]:
    metric, unit = rung.metric, rung.metric.unit
    ends = f"{unit.difference(rung.interval.lower)} to {unit.difference(rung.interval.upper)}"
    return (
        rung.origin.value,
        rung.verdict.value,
        metric.value,
        unit.score(rung.score),
        unit.score(rung.reference),
        unit.difference(metric.gain(rung.score, rung.reference)),
        ends,
        f"{rung.samples} of {rung.samples + rung.samples_left}" if rung.samples_left else str(rung.samples),
        _number(rung.retention),
        _number(rung.retention_floor),
        f"{rung.seconds:.1f}",
    )


def _forecast(found: Findings) -> Iterator[tuple[str, str]]:
    """Beside what the Copy rung came to, where it was tried and counts in the same points."""
    forecast = found.evidence.get("forecast")
    if not forecast:
        return
    if "points" in forecast:
        yield "expected, points of Accuracy", f"{forecast['points']:.1f}"
        yield "mean error of such a forecast", f"{forecast['error']:.1f}"
    for rung in found.rungs:
        if rung.origin is Origin.COPIED and rung.metric is Metric.ACCURACY:
            yield "measured by the gate", f"{100 * (rung.reference - rung.score):.1f}"
    yield "‖D‖ / ‖ΔW‖", _number(forecast["size"])
    yield "share of D that the adapter reads", _number(forecast["read"])
    yield "share of D that the adapter writes", _number(forecast["written"])
    yield "cosine of D and ΔW", _number(forecast["along"])


def _worst_modules(report: ExtractReport) -> Table:
    worst = sorted(report.modules.items(), key=lambda entry: entry[1].energy)[:_WORST]
    rows = tuple(
        (name, str(m.rank), f"{m.energy:.2%}", f"{m.relative_error:.3f}", f"{m.relative_norm:.4f}", _yes(m.capped))
        for name, m in worst
    )
    head = ("module", "rank", "energy", "relative error", "‖ΔW‖ / ‖W‖", "capped")
    return Table("modules", f"The {len(rows)} modules that lost most, of {len(report.modules)}", rows, head)


def _sidecar(report: ExtractReport) -> Table:
    largest = sorted(report.sidecar.items(), key=lambda entry: -entry[1].share)[:_WORST]
    rows = tuple((name, f"{entry.share:.3%}", entry.reason) for name, entry in largest)
    title = f"Changed tensors that no adapter holds: the largest {len(rows)} of {len(report.sidecar)}"
    return Table("sidecar", title, rows, ("tensor", "share of the change", "why"))


def _remembered(lessons: Sequence[Lesson]) -> Table:
    rows = tuple((lesson.task, *(f"{share:.1%}" for share in lesson.accuracies)) for lesson in lessons)
    return Table(
        "lessons", "Accuracy on every task, after", rows, ("task learned", *(lesson.task for lesson in lessons))
    )


def _most_moved(report: DriftReport) -> Table:
    rows = tuple(
        (
            name,
            f"{module.relative_norm:.4f}",
            f"{module.captured_energy:.2%}",
            str(module.rank),
            ", ".join(f"{value:.3g}" for value in module.singular_values[:_DIRECTIONS]),
        )
        for name, module in report.most_moved(_WORST)
    )
    head = ("module", "‖D‖ / ‖W‖", "energy in the factors", "their rank", "leading singular values of D")
    return Table("modules", f"The {len(rows)} modules that moved most, of {report.moved}", rows, head)


def _beside(report: DriftReport) -> Table:
    largest = sorted(report.rest.items(), key=lambda entry: -entry[1])[:_WORST]
    title = f"What moved beside the linear modules: the largest {len(largest)} of {len(report.rest)}"
    return Table("rest", title, tuple((name, f"{norm:.4f}") for name, norm in largest), ("tensor", "‖D‖ / ‖W‖"))


def _digests(found: Findings) -> Iterator[tuple[str, str]]:
    for name in _DIGESTS:
        for owner in (found.request, found.settings):
            if name in owner:
                yield name, str(owner[name])
                break
    if found.variant is not None:
        yield "variant", found.variant


def _examples(evidence: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    yield from _flat(evidence.get("examples", {}))
    if "leaked" in evidence:
        yield "dropped, their prompt is in another split", str(evidence["leaked"])
    if "repeated" in evidence:
        yield "dropped from the gate, their prompt came before", str(evidence["repeated"])
    choices = evidence.get("choices", ())
    if isinstance(choices, list) and choices:
        yield f"{len(choices)} labels", ", ".join(map(str, choices))


def _flat(document: object, name: str = "") -> Iterator[tuple[str, str]]:
    """One row per value, named by the way to it."""
    if isinstance(document, Mapping):
        for key, value in document.items():
            yield from _flat(value, f"{name}.{key}" if name else str(key))
    elif isinstance(document, list):
        yield name, ", ".join(map(str, document))
    else:
        yield name, str(document)


def _number(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else "–"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _non_empty(tables: Iterator[Table]) -> Iterator[Table]:
    return (table for table in tables if table.rows)
