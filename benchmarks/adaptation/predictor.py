"""How well what Copy loses can be told before it is measured, over the moves of a study.

    .venv/bin/python benchmarks/adaptation/predictor.py --study out/cases [out/moves ...] [--data DIR]

Reads the rows of Copy, takes bases and adapters from the study's shelf, and prints the cases and, per law, its slope
and its mean absolute error on moves and on tasks that it was not fitted to. The slopes and errors of the laws that the
product uses stand in ``readapt_runtime/drift/prediction.py``. What was measured of a case is kept in its study.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from cases import say
from intervals import mean_with_interval
from laws import FEATURES, LARGE, Copied, Feature, left_out, slope
from study_bases import Shelf, read_study_adapter
from study_rows import Row, read_rows
from tabular import markdown

from readapt_runtime.adapt.base import LoadedBase, load_base
from readapt_runtime.adapt.comparison import Pair
from readapt_runtime.adapt.forecast import few, likelihood, losses
from readapt_runtime.drift import read_drift
from readapt_runtime.drift.overlap import Overlap, overlap

_NO_DIGEST = f"sha256:{'0' * 64}"


class Measurement:
    """Features of the cases of one study, each computed once."""

    def __init__(self, shelf: Shelf, study: Path) -> None:
        self._shelf = shelf
        self._folder = study / ".features"
        self._bases: dict[Path, LoadedBase] = {}

    def of(self, row: Row) -> Copied:
        file = self._folder / row.move / f"{row.task}-{row.seed}.json"
        if not file.is_file():
            say(f"features of {row.move} {row.task} {row.seed}")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(self._measure(row)), encoding="utf-8")
        found = json.loads(file.read_text(encoding="utf-8"))
        met = Overlap(**found.pop("overlap"), modules={})
        return Copied(row.move, row.task, row.seed, 100 * (row.old_score - row.score), met, **found)

    def _measure(self, row: Row) -> dict[str, object]:
        shelf, move = self._shelf, row.move
        adapter = read_study_adapter(shelf.adapter(row.task, row.seed), shelf.v1())
        met = asdict(overlap(adapter, read_drift(shelf.drift(move))))
        del met["modules"]
        chosen = few(shelf.task(row.task, row.size, row.seed).search)
        old, new = (losses(Pair(self._base(folder), adapter), chosen) for folder in (shelf.v1(), shelf.moved(move)))
        return {
            "overlap": met,
            "old_loss": float(old.mean()),
            "new_loss": float(new.mean()),
            "old_likelihood": likelihood(old),
            "new_likelihood": likelihood(new),
        }

    def _base(self, folder: Path) -> LoadedBase:
        """The old base and the last new one stay in memory."""
        if folder not in self._bases:
            kept = {path: base for path, base in self._bases.items() if path == self._shelf.v1()}
            self._bases = {**kept, folder: load_base(folder, _NO_DIGEST)}
        return self._bases[folder]


def copies(rows: Sequence[Row]) -> list[Row]:
    """Copy's, once per move, task and seed: it does not see how many examples there are to repair with."""
    once = {(row.move, row.task, row.seed): row for row in rows if row.way == "Copy"}
    return [once[key] for key in sorted(once)]


def report(cases: Sequence[Copied]) -> str:
    """Two tables as Markdown: the cases, and the laws."""
    return "\n".join([_cases(cases), _laws(cases)])


def _cases(cases: Sequence[Copied]) -> str:
    head = ["move", "task", "seeds", "lost, points", "‖D‖ / ‖ΔW‖", "read", "written", "along", "loss", "likelihood"]
    lines = []
    for move, task in dict.fromkeys((c.move, c.task) for c in cases):
        group = [c for c in cases if (c.move, c.task) == (move, task)]
        mean = Copied(move, task, 0, 0.0, _mean_overlap(group), *_mean_losses(group))
        lines.append(
            [
                move,
                task,
                str(len(group)),
                mean_with_interval([c.lost for c in group]),
                f"{mean.overlap.size:.3f}",
                f"{mean.overlap.read:.3f}",
                f"{mean.overlap.written:.3f}",
                f"{mean.overlap.along:+.4f}",
                f"{mean.old_loss:.3f} → {mean.new_loss:.3f}",
                f"{mean.old_likelihood:.3f} → {mean.new_likelihood:.3f}",
            ]
        )
    return markdown(head, lines)


def _mean_overlap(cases: Sequence[Copied]) -> Overlap:
    parts = ("size", "read", "written", "along")
    return Overlap(**{part: statistics.fmean(getattr(c.overlap, part) for c in cases) for part in parts}, modules={})


def _mean_losses(cases: Sequence[Copied]) -> Iterator[float]:
    parts = ("old_loss", "new_loss", "old_likelihood", "new_likelihood")
    return (statistics.fmean(getattr(c, part) for c in cases) for part in parts)


def _laws(cases: Sequence[Copied]) -> str:
    head = ["law", "slope", "error on a new move, points", "worst move", f"right about > {LARGE:g} points", "new task"]
    return markdown(head, [_law(name, feature, cases) for name, feature in FEATURES.items()])


def kind(case: Copied) -> str:
    """Of its move, whatever the seed: two orders of one text are no move that the law has not seen."""
    return case.move.partition("@")[0]


def _law(name: str, feature: Feature, cases: Sequence[Copied]) -> list[str]:
    moves = left_out(cases, feature, kind)
    worst = max(moves, key=lambda held: held.error)
    tasks = left_out(cases, feature, lambda c: c.task) if len({c.task for c in cases}) > 1 else []
    return [
        name,
        f"{slope(cases, feature):.3g}",
        mean_with_interval([held.error for held in moves]),
        f"{worst.group} {worst.error:.1f}",
        f"{100 * statistics.fmean(held.right for held in moves):.0f} %",
        mean_with_interval([held.error for held in tasks]),
    ]


def main() -> int:
    arguments = _parser().parse_args()
    torch.set_num_threads(1)
    shelf = Shelf(arguments.data, say)
    measured = Measurement(shelf, arguments.study[0])
    cases = [measured.of(row) for row in copies(read_rows(arguments.study))]
    if len(set(map(kind, cases))) < 2:
        sys.stderr.write("Copy was measured over fewer than two moves: no law can be fitted and tried on another\n")
        return 1
    sys.stdout.write(report(cases))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, nargs="+", required=True, metavar="DIR", help="--out of cases.py")
    parser.add_argument("--data", type=Path, metavar="DIR", help="as given to cases.py")
    return parser


if __name__ == "__main__":
    sys.exit(main())
