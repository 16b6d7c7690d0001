"""Tables of a study: what each way comes to, in how many seconds, and what deciding costs beside fixed ways.

Intervals are Student's at 95 %: over the seeds of a case in the first three tables, over all cases in the last.
Differences and ratios are taken case by case before they are averaged. Accuracy over time is that of the stopping
examples (``study_curves``), every other score that of the gate's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from intervals import mean_with_interval, ratio_with_interval
from study_curves import area, horizon_of, offered, steps_of
from study_rows import Case, Row, by_case, complete, seconds_of_pair

OURS, RETRAIN, COPY = "ours", "scratch", "Copy"
Group = tuple[tuple[str, str, int], str]
"""((move, task, training examples), way)"""


def tables(rows: Sequence[Row]) -> str:
    """All of them as Markdown, each under what it says."""
    parts = (
        ("What each way comes to", scores(rows)),
        ("CPU seconds to the gate's decision", seconds(rows)),
        ("Accuracy over CPU seconds", areas(rows)),
        ("Deciding case by case beside always doing one thing", policy(rows)),
    )
    return "\n".join(f"### {title}\n\n{table}" for title, table in parts)


def scores(rows: Sequence[Row]) -> str:
    """Accuracy on the gate's examples, in percent and points."""
    head = ["move", "task", "examples", "way", "seeds", "old pair", "score", "change", "retention", "passed"]
    lines = []
    for (case, way), group in grouped(rows).items():
        kept = [r.retention for r in group if r.retention is not None]
        lines.append(
            [
                *map(str, case),
                way,
                str(len(group)),
                mean_with_interval([100 * r.old_score for r in group]),
                mean_with_interval([100 * r.score for r in group]),
                mean_with_interval([100 * (r.score - r.old_score) for r in group], sign=True),
                mean_with_interval(kept, digits=2),
                f"{sum(r.passed for r in group)}/{len(group)}",
            ]
        )
    return markdown(head, lines)


def seconds(rows: Sequence[Row]) -> str:
    """Seconds to the decision, and those to readiness over ours in the cases where both got ready.

    ``alone`` counts what is shared as if the adapter were the only one of its base pair.
    """
    ours, of_pair = _of_way(rows, OURS), seconds_of_pair(rows)
    head = ["move", "task", "examples", "way", "CPU s", "alone, CPU s", "÷ ours", "ready", "steps"]
    lines = []
    for (case, way), group in grouped(rows).items():
        both = [r for r in group if r.case in ours and r.passed and ours[r.case].passed]
        lines.append(
            [
                *map(str, case),
                way,
                mean_with_interval([r.seconds for r in group], digits=0),
                mean_with_interval([r.with_shared(of_pair[r.move]) for r in group], digits=0),
                ratio_with_interval([r.ready / ours[r.case].ready for r in both]),
                f"{sum(r.passed for r in group)}/{len(group)}",
                mean_with_interval([float(r.steps) for r in group], digits=0),
            ]
        )
    return markdown(head, lines)


def areas(rows: Sequence[Row]) -> str:
    """Mean accuracy up to where the slowest way of the case ends, and what was there when ours ended."""
    timed = [row for row in complete(rows) if steps_of(row)]
    cases, ours = by_case(timed), _of_way(timed, OURS)
    head = [
        "move",
        "task",
        "examples",
        "way",
        "mean accuracy up to the end",
        "at the end",
        "ours less it when ours ends",
    ]
    lines = []
    for (case, way), group in grouped(timed).items():
        pairs = [(ours[r.case], r) for r in group if r.case in ours]
        lines.append(
            [
                *map(str, case),
                way,
                mean_with_interval([100 * area(r, horizon_of(cases[r.case])) for r in group]),
                mean_with_interval([100 * offered(r, horizon_of(cases[r.case])) for r in group]),
                mean_with_interval([100 * (_at_end(own) - offered(r, own.seconds)) for own, r in pairs], sign=True),
            ]
        )
    return markdown(head, lines)


def policy(rows: Sequence[Row]) -> str:
    """Over the cases that every way has gone through.

    Regret: points of accuracy below the best way of the case, which is the best of noisy scores, so that a little
    regret is everybody's. Compute: CPU seconds of all cases over those of retraining always.
    """
    whole = complete(rows)
    best = {case: max(r.score for r in group) for case, group in by_case(whole).items()}
    compute = _compute(whole)
    head = ["what is done in every case", "cases", "regret, points", "less ours", "CPU s", "÷ always retrain", "ready"]
    ours, lines = _of_way(whole, OURS), []
    for way in dict.fromkeys(r.way for r in whole):
        group = [r for r in whole if r.way == way]
        less = [100 * (ours[r.case].score - r.score) for r in group if r.case in ours]
        lines.append(
            [
                _named(way),
                str(len(group)),
                mean_with_interval([100 * (best[r.case] - r.score) for r in group]),
                mean_with_interval(less, sign=True),
                f"{compute[way]:.0f}",
                f"{compute[way] / compute[RETRAIN]:.2f}" if RETRAIN in compute else "–",
                f"{sum(r.passed for r in group)}/{len(group)}",
            ]
        )
    return markdown(head, lines)


def grouped(rows: Sequence[Row]) -> dict[Group, list[Row]]:
    """In the order of move, task and size; the ways of one as they come."""
    groups: dict[Group, list[Row]] = {}
    for row in sorted(rows, key=lambda r: r.case[:3]):
        groups.setdefault((row.case[:3], row.way), []).append(row)
    return groups


def _compute(rows: Sequence[Row]) -> Mapping[str, float]:
    """Way -> CPU seconds over all its rows."""
    return {way: sum(r.seconds for r in rows if r.way == way) for way in dict.fromkeys(r.way for r in rows)}


def _of_way(rows: Sequence[Row], way: str) -> Mapping[Case, Row]:
    return {row.case: row for row in rows if row.way == way}


def _at_end(row: Row) -> float:
    return steps_of(row)[-1][1]


def _named(way: str) -> str:
    return {OURS: "decide: ours", RETRAIN: "always retrain", COPY: "always copy"}.get(way, f"always {way}")


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"
