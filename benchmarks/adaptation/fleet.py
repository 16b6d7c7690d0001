"""How long it takes until all adapters of one base are ready again after a move: in one Job, or one by one.

    .venv/bin/python benchmarks/adaptation/fleet.py --out out/fleet [--data DIR] [--adapters 8]

    ours         what an ``adapt`` Job does with as many items: the bases are loaded once; drift, yardstick and replay
                 text belong to the move and are made once
    Copy+tuning  each adapter by itself: both bases are loaded (the old one answers for the gate), then plain
                 fine-tuning of the copied adapter with a tuned learning rate, up to the same gate

The adapters are those of four tasks (cuts of twenty intents of Banking77; two generated ones without --data) and as
many seeds as it takes. Every (adapter, way) is one JSON file in --out and is not computed again. Seconds are CPU
seconds of one thread; how long the old adapters were trained is no part of them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from intervals import mean_with_interval
from stopwatch import Stopwatch
from study import Plan, Study, say
from study_bases import INTENTS, MOVES, Shelf
from study_rows import Case, Row, read_rows, seconds_of_pair

from readapt_runtime.drift import measure
from readapt_runtime.progress import JsonLog, Log

OURS, ALONE = "ours", "Copy+tuning"
CUTS = (INTENTS, f"{INTENTS}+19", f"{INTENTS}+38", f"{INTENTS}+57")


@dataclass(frozen=True, slots=True)
class FleetPlan(Plan):
    """The first ``adapters`` of every task with the first seed, then with the next."""

    adapters: int = 8

    def cases(self) -> Iterator[Case]:
        cases = ((self.moves[0], task, self.sizes[0], seed) for seed in itertools.count() for task in self.tasks)
        return itertools.islice(cases, self.adapters)


@dataclass(frozen=True, slots=True)
class MoveSeconds:
    """What belongs to a base move."""

    loading: float
    """Of both bases."""
    drift: float

    @classmethod
    def of(cls, shelf: Shelf, move: str, out: Path, log: Log) -> MoveSeconds:
        """Out of ``out``, else measured and written there."""
        file = out / "move.json"
        if not file.is_file():
            old, new = shelf.v1(), shelf.moved(MOVES[move], seed=0)
            with TemporaryDirectory() as scratch:
                watch = Stopwatch(log)
                measure(old, new, Path(scratch) / "drift", log)
                drift = watch.seconds()
            watch = Stopwatch(log)
            shelf.load(move)
            file.write_text(json.dumps({"loading": watch.seconds(), "drift": drift}), encoding="utf-8")
        return cls(**json.loads(file.read_text(encoding="utf-8")))


@dataclass(frozen=True, slots=True)
class Total:
    """What a way comes to for the whole fleet."""

    way: str
    rows: Sequence[Row]
    of_move: float
    """CPU seconds for what is shared, counted as often as it is done."""
    of_adapters: Sequence[float]
    """CPU seconds from an adapter to the gate's decision, the old pair's answers included."""

    @property
    def seconds(self) -> float:
        return self.of_move + sum(self.of_adapters)

    @property
    def ready(self) -> int:
        return sum(row.passed for row in self.rows)


def total(way: str, rows: Sequence[Row], move: MoveSeconds) -> Total:
    """Work of the move is done once by ours, and as often as there are adapters one by one."""
    mine = [row for row in rows if row.way == way]
    of_adapters = [row.with_shared(of_pair=0.0) for row in mine]
    if way != OURS:
        return Total(way, mine, len(mine) * move.loading, of_adapters)
    return Total(way, mine, move.loading + move.drift + sum(seconds_of_pair(rows).values()), of_adapters)


def table(totals: Sequence[Total]) -> str:
    ours = next((each for each in totals if each.way == OURS), None)
    head = ["way", "ready", "CPU s in all", "of it once per move", "per adapter", "÷ ours", "score, %", "retention"]
    lines = []
    for each in totals:
        kept = [row.retention for row in each.rows if row.retention is not None]
        lines.append(
            [
                each.way,
                f"{each.ready}/{len(each.rows)}",
                f"{each.seconds:.0f}",
                f"{each.of_move:.0f}",
                mean_with_interval(each.of_adapters, digits=0),
                "–" if ours is None else f"{each.seconds / ours.seconds:.2f}",
                mean_with_interval([100 * row.score for row in each.rows]),
                f"{statistics.fmean(kept):.3f}" if kept else "–",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *lines]) + "\n"


def adapters_table(rows: Sequence[Row]) -> str:
    """How each adapter fared."""
    head = ["adapter", "way", "old pair, %", "Copy keeps", "score, %", "retention", "ready by", "steps", "CPU s"]
    lines = [
        [
            f"{row.task}, seed {row.seed}",
            row.way,
            f"{100 * row.old_score:.1f}",
            "–" if row.of_copy is None else f"{row.of_copy:.2f}",
            f"{100 * row.score:.1f}",
            "–" if row.retention is None else f"{row.retention:.2f}",
            row.origin if row.passed else "not ready",
            str(row.steps),
            f"{row.seconds:.0f}",
        ]
        for row in rows
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *lines]) + "\n"


def main() -> int:
    arguments = _parser().parse_args()
    torch.set_num_threads(1)
    tasks = CUTS if arguments.data else ("parcels", "shifts")
    ways = (OURS, ALONE)
    plan = FleetPlan(
        [arguments.move],
        tasks,
        [arguments.size],
        seeds=0,
        ways=ways,
        adapter_steps=arguments.adapter_steps,
        adapters=arguments.adapters,
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    with (arguments.out / "log.jsonl").open("a", encoding="utf-8") as stream:
        shelf, log = Shelf(arguments.data, say), JsonLog(stream)
        study = Study(plan, shelf, arguments.out, log)
        seconds = MoveSeconds.of(shelf, arguments.move, arguments.out, log)
        if not arguments.tables_only:
            study.run()
    rows = [row for row in read_rows([arguments.out]) if row.case in set(plan.cases())]
    totals = [total(way, rows, seconds) for way in ways if any(row.way == way for row in rows)]
    sys.stdout.write(f"{table(totals)}\n{adapters_table(rows)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="results, one JSON file each")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folders banking77 and math_text")
    parser.add_argument("--move", default="harder", choices=sorted(MOVES))
    parser.add_argument("--size", type=int, default=200, help="training examples to repair with")
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--adapter-steps", type=int, default=60, help="that the old adapters are trained for")
    parser.add_argument("--tables-only", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
