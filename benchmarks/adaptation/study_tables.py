"""Tables of a study: what each way comes to, in how many seconds, and what deciding costs beside fixed ways.

Intervals are Student's at 95 %: over the seeds of a case in the first three tables, over all cases in the last.
Differences and ratios are taken case by case before they are averaged. Accuracy over time is that of the stopping
examples (``study_curves``), every other score that of the gate's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from intervals import mean_with_interval, ratio_with_interval
from study_curves import area, horizon_of, offered, steps_of
from study_rows import Row, by_case, complete, of_way, seconds_of_pair
from study_targets import false_passes, targets
from tabular import markdown

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
        ("Passed, and worse than allowed on examples that the gate had not looked at", false_passes(rows)),
        ("What it was to reach", targets(rows)),
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

    ``alone`` counts what is shared, drift included, as if the adapter were the only one of its base pair.
    """
    ours, of_pair = of_way(rows, OURS), seconds_of_pair(rows)
    head = ["move", "task", "examples", "way", "CPU s", "alone, CPU s", "÷ ours", "alone ÷ ours", "ready", "steps"]
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
                ratio_with_interval(
                    [r.with_shared(of_pair[r.move]) / ours[r.case].with_shared(of_pair[r.move]) for r in both]
                ),
                f"{sum(r.passed for r in group)}/{len(group)}",
                mean_with_interval([float(r.steps) for r in group], digits=0),
            ]
        )
    return markdown(head, lines)


def areas(rows: Sequence[Row]) -> str:
    """Mean accuracy up to where the slowest way of the case ends, and what was there when ours ended."""
    timed = [row for row in complete(rows) if steps_of(row)]
    cases, ours = by_case(timed), of_way(timed, OURS)
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
    regret is everybody's. Compute: CPU seconds of all cases over those of retraining always, with the old pair's
    answers of every case and with what belongs to a base pair: once per pair, or, *alone*, in every case.
    """
    whole = complete(rows)
    best = {case: max(r.score for r in group) for case, group in by_case(whole).items()}
    compute, alone = _compute(whole, alone=False), _compute(whole, alone=True)
    head = [
        "what is done in every case",
        "cases",
        "regret, points",
        "less ours",
        "CPU s",
        "÷ always retrain",
        "÷ it, alone",
        "ready",
    ]
    ours, lines = of_way(whole, OURS), []
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
                *(f"{each[way] / each[RETRAIN]:.2f}" if RETRAIN in each else "–" for each in (compute, alone)),
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


def _compute(rows: Sequence[Row], alone: bool) -> Mapping[str, float]:
    """Way -> CPU seconds over all its rows; what belongs to a base pair once per pair, or ``alone`` in every case."""
    of_pair, seconds = seconds_of_pair(rows), dict[str, float]()
    for row in rows:
        seconds[row.way] = seconds.get(row.way, 0.0) + row.with_shared(of_pair[row.move] if alone else 0.0)
    once = 0.0 if alone else sum(of_pair.values())
    users = {row.way for row in rows if row.needs_pair}
    return {way: second + once * (way in users) for way, second in seconds.items()}


def _at_end(row: Row) -> float:
    return steps_of(row)[-1][1]


def _named(way: str) -> str:
    return {OURS: "decide: ours", RETRAIN: "always retrain", COPY: "always copy"}.get(way, f"always {way}")
