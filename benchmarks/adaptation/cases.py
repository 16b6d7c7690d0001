"""The cases of the study: moves, tasks, sizes, seeds, ways, and what each way comes to; ``study.py`` runs them all.

    .venv/bin/python benchmarks/adaptation/cases.py --out out/cases [--data DIR] [--small]

Every (case, way) is one JSON file in --out and is not computed again, so the study can be stopped and started; with
``--tables-only`` tables and plots (*.svg in --out) are made of what is there. Seconds are CPU seconds of a single
thread: on two cores start it twice, with ``--part 1/2`` and ``--part 2/2``. ``--ways Copy`` is cheap, it computes
nothing about retention: for more moves, to fit the predictor to (``predictor.py``), in an --out of its own. A move such
as ``harder@1`` is ``harder`` with its text in another order; a task that ends in ``-spelled`` is judged by ExactMatch.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice, product
from pathlib import Path

import torch
from strategies import MAX_STEPS, WAYS, Contest, Trial, timed_once
from study_bases import ADAPTER_STEPS, INTENTS, SPELLED, Shelf, alone, metric_of, move_of, read_study_adapter
from study_charts import plot_study
from study_rows import MARGIN, Case, Row, read_rows, write_row
from study_tables import tables

from readapt_runtime.adapt.item import Move
from readapt_runtime.progress import JsonLog, Log

STUDIED = ("mild", "strong", "harder")
REAL_TASKS = (INTENTS, "arc_easy", f"{INTENTS}{SPELLED}")
GENERATED_TASKS = ("parcels", "shifts", f"parcels{SPELLED}")
SMALL_STEPS = 100


@dataclass(frozen=True, slots=True)
class Plan:
    moves: Sequence[str]
    tasks: Sequence[str]
    sizes: Sequence[int]
    seeds: int
    ways: Sequence[str]
    part: int = 1
    parts: int = 1
    """Of so many processes this one goes through every so manieth case, from the ``part``-th on."""
    adapter_steps: int = ADAPTER_STEPS
    max_steps: int = MAX_STEPS

    def cases(self) -> Iterator[Case]:
        """The move outermost: its bases are loaded once."""
        every = product(self.moves, self.tasks, self.sizes, range(self.seeds))
        return islice(every, self.part - 1, None, self.parts)


class Study:
    """The cases of a plan, one after the other."""

    def __init__(self, plan: Plan, shelf: Shelf, out: Path, log: Log) -> None:
        self._plan = plan
        self._shelf = shelf
        self._out = out
        self._log = log
        self._loaded: tuple[str, Move] | None = None

    def run(self) -> None:
        for case in self._plan.cases():
            missing = [way for way in self._plan.ways if not self._file(case, way).is_file()]
            if missing:
                self._contest(case, missing)

    def _contest(self, case: Case, ways: Sequence[str]) -> None:
        move, task, size, seed = case
        said, copy_alone = f"{move} {task} {size} {seed}", tuple(self._plan.ways) == ("Copy",)
        say(said)
        adapter = read_study_adapter(self._shelf.adapter(task, seed, self._plan.adapter_steps), self._shelf.v1())
        splits = self._shelf.task(task, size, seed)
        stores = self._out / ".store" / move
        metric = metric_of(task)
        drift = {} if copy_alone else {"drift": self._drift_seconds(move)}
        spare, steps = self._shelf.spare(task, splits), self._plan.max_steps
        contest = Contest(
            Trial(said, self._move(move), adapter, splits, seed, MARGIN, metric, spare, steps),
            pair=stores / "pair",
            folder=stores / f"{task}-{size}-{seed}",
            log=self._log,
            copy_alone=copy_alone,
        )
        for way in ways:
            found, shared = WAYS[way](contest), contest.shared
            facts = {"old_score": shared.old_score, "of_copy": contest.of_copy, "shared": {**shared.seconds, **drift}}
            named = {"move": move, "task": task, "size": size, "seed": seed, "way": way, "margin": MARGIN}
            row = Row(**named, **facts, **asdict(found), metric=metric.value)
            write_row(self._file(case, way), row)
            kept = "–" if found.retention is None else f"{found.retention:.3f}"
            say(
                f"  {way}: {100 * found.score:.1f} % (old pair {100 * shared.old_score:.1f} %), retention {kept},"
                f" {'passed' if found.passed else 'not passed'} after {found.seconds:.0f} s"
            )

    def _move(self, name: str) -> Move:
        if self._loaded is None or self._loaded[0] != name:
            self._loaded = name, self._shelf.load(name)
        return self._loaded[1]

    def _drift_seconds(self, move: str) -> float:
        """CPU seconds of measuring it once more, the first time that a study asks."""
        file = self._out / ".store" / f"{move}-drift.s"
        file.parent.mkdir(parents=True, exist_ok=True)
        self._shelf.moved(move)
        with alone(file.with_suffix(".lock")):
            return timed_once(file, lambda: self._shelf.measure_drift(move, self._log))[1]

    def _file(self, case: Case, way: str) -> Path:
        return self._out / "-".join(map(str, case)) / f"{way}.json"


def say(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")


def main() -> int:
    arguments = _parser().parse_args()
    torch.set_num_threads(1)
    tasks = arguments.tasks or list(REAL_TASKS if arguments.data else GENERATED_TASKS)
    plan = Plan(arguments.moves, tasks, arguments.sizes, arguments.seeds, arguments.ways, *arguments.part)
    if arguments.small:
        plan = replace(plan, moves=["harder"], tasks=tasks[:1], sizes=[200], seeds=3, max_steps=SMALL_STEPS)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with (arguments.out / "log.jsonl").open("a", encoding="utf-8") as stream:
        study = Study(plan, Shelf(arguments.data, say), arguments.out, JsonLog(stream))
        if not arguments.tables_only:
            study.run()
    rows = read_rows([arguments.out])
    sys.stdout.write(tables(rows))
    plot_study(rows, arguments.out)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="results, one JSON file each")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folders banking77, arc_easy, …, and math_text")
    parser.add_argument("--moves", nargs="+", default=list(STUDIED), type=_move, metavar="MOVE[@SEED]")
    told = f"default: {' '.join(REAL_TASKS)}; without --data {' '.join(GENERATED_TASKS)}"
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help=told)
    parser.add_argument("--sizes", nargs="+", type=int, default=[200, 1000], help="training examples to repair with")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument(
        "--small", action="store_true", help=f"one move, one task, 200 examples, three seeds, {SMALL_STEPS} steps"
    )
    parser.add_argument(
        "--part", type=_part, default=(1, 1), metavar="I/N", help="this process is the I-th of N that share the cases"
    )
    parser.add_argument("--tables-only", action="store_true")
    return parser


def _move(name: str) -> str:
    move_of(name)
    return name


def _part(text: str) -> tuple[int, int]:
    part, parts = (int(number) for number in text.split("/"))
    if not 1 <= part <= parts:
        raise ValueError(text)
    return part, parts


if __name__ == "__main__":
    sys.exit(main())
