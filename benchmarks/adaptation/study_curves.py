"""Accuracy over time: what a way had to offer at a CPU second, and on average up to one.

A way offers what it starts from (the copied adapter; from scratch: the base alone), then its best checkpoint so far,
and from its end on what it came to, all on the stopping examples: no way is stopped or chosen by the gate's.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from study_rows import Row


def steps_of(row: Row) -> list[tuple[float, float]]:
    """(CPU second, accuracy from then on), in time; the first is at 0. Empty when the row has no times."""
    if row.begin is None or row.end is None:
        return []
    best, found = row.begin, [(0.0, row.begin)]
    for second, score in sorted((s, v) for s, v in row.curve if s < row.seconds):
        best = max(best, score)
        found.append((second, best))
    return [*found, (row.seconds, row.end)]


def offered(row: Row, second: float) -> float:
    """Accuracy at ``second``. Raises IndexError for a row without times."""
    return [score for begin, score in steps_of(row) if begin <= second][-1]


def area(row: Row, horizon: float) -> float:
    """Mean accuracy over the CPU seconds from 0 to ``horizon``. Raises IndexError for a row without times."""
    steps = [(begin, score) for begin, score in steps_of(row) if begin < horizon]
    ends = [(horizon, steps[-1][1])]
    return sum(score * (end - begin) for (begin, score), (end, _) in pairwise([*steps, *ends])) / horizon


def horizon_of(rows: Sequence[Row]) -> float:
    """Where the slowest of them ends."""
    return max(row.seconds for row in rows)
