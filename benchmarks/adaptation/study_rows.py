"""What a study found: one row per case and way, and how it is kept."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

Case = tuple[str, str, int, int]
"""(move, task, training examples, seed)"""
MARGIN = 0.03
_OF_PAIR = ("yardstick", "replay", "drift")
_USES_PAIR = ("ReLoRA", "ours", "Refresh")
"""The ways that need what is computed once per base pair."""


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
    """CPU seconds spent once: ``yardstick``, ``replay`` and ``drift`` per base pair, ``old answers`` per case."""
    seconds: float
    """CPU seconds to the gate's decision, without what is shared."""
    passed: bool
    score: float
    retention: float | None
    curve: Sequence[Sequence[float]]
    """(CPU seconds so far, score on the stopping examples) per evaluation."""
    steps: int
    origin: str
    parts: Mapping[str, float]
    begin: float | None = None
    """Score on the stopping examples of what the way starts from; None in rows of Copy alone, and of a study that
    did not time its evaluations yet: these are in no table over time."""
    end: float | None = None
    """The same of what is served afterwards: the variant that passed, else Copy."""
    tested: Sequence[Sequence[float]] = ()
    """(CPU seconds so far, score on the gate's examples) per best checkpoint; of plain tuning alone."""
    unseen: Mapping[str, float] | None = None
    """``examples``, ``gain`` and its ``error`` of a variant that passed, on test examples that its gate had not looked
    at; None where there are too few."""
    margin: float = MARGIN
    metric: str = "Accuracy"

    @property
    def case(self) -> Case:
        return self.move, self.task, self.size, self.seed

    @property
    def ready(self) -> float:
        """CPU seconds to a variant that passed; infinite when none did."""
        return self.seconds if self.passed else math.inf

    def with_shared(self, of_pair: float) -> float:
        """CPU seconds as if this adapter were the only one of its base pair, which cost ``of_pair`` seconds."""
        return self.seconds + self.shared.get("old answers", 0.0) + of_pair * self.needs_pair

    @property
    def needs_pair(self) -> bool:
        return self.way in _USES_PAIR

    def tested_at(self, second: float) -> float:
        """Score on the gate's examples of the best checkpoint at ``second``. Raises IndexError without checkpoints."""
        return [score for begin, score in self.tested if begin <= second][-1]


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


def of_way(rows: Iterable[Row], way: str) -> dict[Case, Row]:
    return {row.case: row for row in rows if row.way == way}


def complete(rows: Sequence[Row]) -> list[Row]:
    """Those of the cases in which every way of the study has a row: what may be averaged over cases and compared."""
    ways = {row.way for row in rows}
    whole = {case for case, group in by_case(rows).items() if {row.way for row in group} == ways}
    return [row for row in rows if row.case in whole]


def seconds_of_pair(rows: Iterable[Row]) -> dict[str, float]:
    """Move -> CPU seconds of its yardstick, text and drift; a later case of the move found them and has near zero."""
    seconds: dict[str, float] = {}
    for row in rows:
        own = sum(row.shared.get(part, 0.0) for part in _OF_PAIR)
        seconds[row.move] = max(own, seconds.get(row.move, 0.0))
    return seconds
