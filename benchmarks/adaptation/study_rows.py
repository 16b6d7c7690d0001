"""What a study found: one row per case and way, and how it is kept."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

Case = tuple[str, str, int, int]
"""(move, task, training examples, seed)"""
_USES_YARDSTICK = ("ours", "Refresh")


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
    """Retention of Copy."""
    shared: Mapping[str, float]
    """CPU seconds spent once: ``yardstick`` and ``replay`` per base pair, ``old answers`` per case."""
    seconds: float
    """CPU seconds to the gate's decision, without what is shared."""
    passed: bool
    score: float
    retention: float | None
    curve: Sequence[Sequence[float]]
    """(CPU seconds so far, accuracy on the stopping examples) per evaluation."""
    steps: int
    origin: str
    parts: Mapping[str, float]
    begin: float | None = None
    """Accuracy on the stopping examples of what the way starts from; None in rows of Copy alone, and of a study that
    did not time its evaluations yet: these are in no table over time."""
    end: float | None = None
    """The same of what it came to."""

    @property
    def case(self) -> Case:
        return self.move, self.task, self.size, self.seed

    @property
    def ready(self) -> float:
        """CPU seconds to a variant that passed; infinite when none did."""
        return self.seconds if self.passed else math.inf

    def with_shared(self, of_pair: float) -> float:
        """CPU seconds as if this adapter were the only one of its base pair, which cost ``of_pair`` seconds."""
        return self.seconds + self.shared.get("old answers", 0.0) + of_pair * (self.way in _USES_YARDSTICK)


def write_row(file: Path, row: Row) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(asdict(row)), encoding="utf-8")


def read_rows(studies: Iterable[Path]) -> list[Row]:
    """Of everything that is there."""
    files = [file for study in studies for file in sorted(study.glob("[!.]*/*.json"))]
    return [Row(**json.loads(file.read_text(encoding="utf-8"))) for file in files]


def by_case(rows: Iterable[Row]) -> dict[Case, list[Row]]:
    groups: dict[Case, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.case, []).append(row)
    return groups


def complete(rows: Sequence[Row]) -> list[Row]:
    """Those of the cases in which every way of the study has a row: what may be averaged over cases and compared."""
    ways = {row.way for row in rows}
    whole = {case for case, group in by_case(rows).items() if {row.way for row in group} == ways}
    return [row for row in rows if row.case in whole]


def seconds_of_pair(rows: Iterable[Row]) -> dict[str, float]:
    """Move -> CPU seconds of its yardstick and text; a later case of the move found them there and has near zero."""
    seconds: dict[str, float] = {}
    for row in rows:
        own = row.shared.get("yardstick", 0.0) + row.shared.get("replay", 0.0)
        seconds[row.move] = max(own, seconds.get(row.move, 0.0))
    return seconds
