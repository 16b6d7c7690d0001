"""Tables of a study: what each way comes to, in how many seconds, and what deciding costs beside fixed ways.

Intervals are ± 1.96 standard errors over seeds and cases; seconds to readiness are compared case by case.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

MOST_SECONDS = math.inf


@dataclass(frozen=True, slots=True)
class Row:
    """One way in one case."""

    move: str
    task: str
    size: int
    seed: int
    way: str
    old_score: float
    of_copy: float | None
    shared: Mapping[str, float]
    seconds: float
    passed: bool
    score: float
    retention: float | None
    curve: Sequence[Sequence[float]]
    steps: int
    origin: str
    parts: Mapping[str, float]

    @property
    def case(self) -> tuple[str, str, int, int]:
        return self.move, self.task, self.size, self.seed

    @property
    def ready(self) -> float:
        """CPU seconds to a variant that passed; infinite when none did."""
        return self.seconds if self.passed else MOST_SECONDS


def tables(rows: Sequence[Row]) -> str:
    """All of them as Markdown."""
    return "\n".join([_scores(rows), _seconds(rows), _policy(rows)])


def _scores(rows: Sequence[Row]) -> str:
    head = ["move", "task", "examples", "way", "seeds", "old pair, %", "score, %", "change", "retention", "passed"]
    lines = []
    for key, group in _grouped(rows):
        kept = [r.retention for r in group if r.retention is not None]
        lines.append(
            [
                *map(str, key),
                str(len(group)),
                _spread([100 * r.old_score for r in group]),
                _spread([100 * r.score for r in group]),
                _spread([100 * (r.score - r.old_score) for r in group], sign=True),
                _spread(kept, digits=2) if kept else "–",
                f"{sum(r.passed for r in group)}/{len(group)}",
            ]
        )
    return _markdown(head, lines)


def _seconds(rows: Sequence[Row]) -> str:
    """Seconds to readiness and, case by case, those of the other ways over ours."""
    ours = {r.case: r for r in rows if r.way == "ours"}
    head = ["move", "task", "examples", "way", "CPU s to the decision", "÷ ours", "never ready", "steps"]
    lines = []
    for key, group in _grouped(rows):
        ratios = [r.ready / ours[r.case].ready for r in group if r.case in ours and r.passed and ours[r.case].passed]
        lines.append(
            [
                *map(str, key),
                _spread([r.seconds for r in group], digits=0),
                _spread(ratios, digits=2) if ratios else "–",
                f"{sum(not r.passed for r in group)}/{len(group)}",
                _spread([float(r.steps) for r in group], digits=0),
            ]
        )
    return _markdown(head, lines)


def _policy(rows: Sequence[Row]) -> str:
    """Points below the best way of each case, and seconds, of deciding case by case and of always doing one thing."""
    best = {case: max(r.score for r in group) for case, group in _by_case(rows)}
    head = ["what is always done", "cases", "regret, points", "CPU s per case", "÷ scratch"]
    scratch = statistics.fmean(r.seconds for r in rows if r.way == "scratch") if _has(rows, "scratch") else math.nan
    lines = []
    for way in dict.fromkeys(r.way for r in rows):
        group = [r for r in rows if r.way == way]
        seconds = statistics.fmean(r.seconds for r in group)
        regret = [100 * (best[r.case] - r.score) for r in group]
        lines.append([way, str(len(group)), _spread(regret), f"{seconds:.0f}", f"{seconds / scratch:.2f}"])
    return _markdown(head, lines)


def _has(rows: Iterable[Row], way: str) -> bool:
    return any(r.way == way for r in rows)


def _grouped(rows: Sequence[Row]) -> list[tuple[tuple[str, str, int, str], list[Row]]]:
    """By move, task, size and way, in the order in which they come."""
    groups: dict[tuple[str, str, int, str], list[Row]] = {}
    for row in sorted(rows, key=lambda r: (r.move, r.task, r.size)):
        groups.setdefault((row.move, row.task, row.size, row.way), []).append(row)
    return list(groups.items())


def _by_case(rows: Sequence[Row]) -> list[tuple[tuple[str, str, int, int], list[Row]]]:
    groups: dict[tuple[str, str, int, int], list[Row]] = {}
    for row in rows:
        groups.setdefault(row.case, []).append(row)
    return list(groups.items())


def _spread(values: Sequence[float], digits: int = 1, sign: bool = False) -> str:
    mean = statistics.fmean(values)
    text = f"{mean:{'+' if sign else ''}.{digits}f}"
    if len(values) < 2:
        return text
    return f"{text} ± {1.96 * statistics.stdev(values) / math.sqrt(len(values)):.{digits}f}"


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"
