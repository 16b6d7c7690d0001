"""How long it takes until all adapters of one base are ready again after a move: in one Job, or one by one.

    .venv/bin/python benchmarks/adaptation/fleet.py --out out/fleet [--data DIR] [--adapters 8]

    one Job       an ``adapt`` Job with as many items: bases are loaded once, yardstick and replay text made once
    single Jobs   an ``adapt`` Job for each, one after the other over one store: each loads both bases, the first makes
                  what belongs to the move
    Copy+tuning   each adapter by itself: both bases are loaded (the old one answers for the gate), then plain
                  fine-tuning of the copied adapter with a tuned learning rate, up to the same gate

The Jobs are the product's own (``readapt_runtime.jobs.adapt``), run in this process; the drift Job before them counts
once for either. The adapters are those of four tasks (cuts of twenty intents of Banking77; two generated ones without
--data) and as many seeds as it takes. Every Job, and every adapter of Copy+tuning, is one JSON file in --out and is not
computed again. Seconds are CPU seconds of one thread: the process keeps to one processor. How long the old adapters
were trained is no part of them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cases import SMALL_STEPS, Plan, Study, say
from fleet_jobs import Job, Jobs, differing, publish_adapter, publish_move
from intervals import mean_with_interval
from stopwatch import Stopwatch
from strategies import CONFIDENCE, MAX_STEPS
from study_bases import INTENTS, MOVES, RANK, Shelf, write_examples
from study_rows import MARGIN, Case, Row, read_rows
from tabular import markdown

from readapt_api.artifacts import ArtifactKind
from readapt_api.jobs import AdaptationSettings, AdaptItem, AdaptRequest, GateSettings
from readapt_runtime.adapt.base import fix_threads
from readapt_runtime.progress import JsonLog, Log
from readapt_runtime.store import Store

TOGETHER, SINGLE, TUNED = "one Job", "single Jobs", "Copy+tuning"
CUTS = (INTENTS, f"{INTENTS}+19", f"{INTENTS}+38", f"{INTENTS}+57")


@dataclass(frozen=True, slots=True)
class FleetPlan(Plan):
    """The first ``adapters`` of every task with the first seed, then with the next."""

    adapters: int = 8

    def cases(self) -> Iterator[Case]:
        cases = ((self.moves[0], task, self.sizes[0], seed) for seed in itertools.count() for task in self.tasks)
        return itertools.islice(cases, self.adapters)


@dataclass(frozen=True, slots=True)
class Published:
    """The request of all items; written when everything that it names is in the store."""

    request: AdaptRequest
    drift_seconds: float

    @classmethod
    def of(cls, plan: FleetPlan, shelf: Shelf, out: Path, log: Log) -> Published:
        """Out of ``out``, else published there."""
        file, root = out / ".request.json", out / ".stores" / "published"
        if not file.is_file():
            shutil.rmtree(root, ignore_errors=True)
            store, cases = Store(root), list(plan.cases())
            move, drift, seconds = publish_move(store, shelf.v1(), shelf.moved(cases[0][0]), log)
            items = tuple(_item(store, move.old_base, shelf, case, plan) for case in cases)
            request = AdaptRequest(old_base=move.old_base, new_base=move.new_base, drift=drift, items=items)
            file.write_text(json.dumps({"request": request.to_wire(), "drift": seconds}), encoding="utf-8")
        found = json.loads(file.read_text(encoding="utf-8"))
        return cls(AdaptRequest.model_validate(found["request"]), found["drift"])


def _item(store: Store, base: str, shelf: Shelf, case: Case, plan: FleetPlan) -> AdaptItem:
    _, task, size, seed = case
    with store.stage() as folder:
        write_examples(folder, shelf.examples(task, size, seed))
        data = store.publish(ArtifactKind.DATA, folder).digest
    return AdaptItem(
        name=f"{task.replace('+', '-')}-{seed}",
        reference=publish_adapter(store, shelf.adapter(task, seed, plan.adapter_steps), base, RANK),
        data=data,
        adaptation=AdaptationSettings(max_steps=plan.max_steps),
        gate=GateSettings(max_regression=str(MARGIN), confidence=str(CONFIDENCE)),
    )


@dataclass(frozen=True, slots=True)
class Total:
    """What a way comes to for the whole fleet."""

    way: str
    once: float
    """CPU seconds that do not grow with the fleet."""
    each: Sequence[float]
    """CPU seconds per Job, or per adapter."""
    ready: int
    adapters: int

    @property
    def seconds(self) -> float:
        return self.once + sum(self.each)


def of_jobs(way: str, jobs: Sequence[Job], drift: float) -> Total:
    outcomes = [outcome for job in jobs for outcome in job.outcomes]
    return Total(way, drift, [job.seconds for job in jobs], sum(o.passed for o in outcomes), len(outcomes))


def of_tuning(rows: Sequence[Row], loading: float) -> Total:
    """Each loads both bases and asks the old pair; it needs neither drift nor text."""
    each = [loading + row.with_shared(of_pair=0.0) for row in rows]
    return Total(TUNED, 0.0, each, sum(row.passed for row in rows), len(rows))


def table(totals: Sequence[Total]) -> str:
    (together,) = (each for each in totals if each.way == TOGETHER)
    head = ["way", "ready", "CPU s in all", "of it drift", "per adapter", f"÷ {TOGETHER}"]
    lines = [
        [
            each.way,
            f"{each.ready}/{each.adapters}",
            f"{each.seconds:.0f}",
            f"{each.once:.0f}",
            f"{each.seconds / each.adapters:.0f}" if each.way == TOGETHER else mean_with_interval(each.each, digits=0),
            f"{each.seconds / together.seconds:.2f}",
        ]
        for each in totals
    ]
    return markdown(head, lines)


def adapters_table(together: Job, singles: Sequence[Job], rows: Sequence[Row]) -> str:
    """How each adapter fared, and whether being one of many changed what it came to."""
    head = ["adapter", "Job: ready by", "alone, CPU s", "Copy+tuning", "CPU s", "steps"]
    lines = [
        [
            outcome.name,
            outcome.origin.value if outcome.passed and outcome.origin else "not ready",
            f"{job.seconds:.0f}",
            "ready" if row.passed else "not ready",
            f"{row.seconds:.0f}",
            str(row.steps),
        ]
        for outcome, job, row in zip(together.outcomes, singles, rows, strict=True)
    ]
    others = differing(together, singles)
    said = f"come to other variants: {', '.join(others)}" if others else "come to the same variants, digest by digest"
    return f"{markdown(head, lines)}\nOne Job and single ones {said}.\n"


def main() -> int:
    arguments = _parser().parse_args()
    _keep_to_one_processor()
    plan = FleetPlan(
        [arguments.move],
        CUTS if arguments.data else ("parcels", "shifts"),
        [arguments.size],
        seeds=0,
        ways=(TUNED,),
        adapter_steps=arguments.adapter_steps,
        max_steps=SMALL_STEPS if arguments.small else MAX_STEPS,
        adapters=2 if arguments.small else arguments.adapters,
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    with (arguments.out / "log.jsonl").open("a", encoding="utf-8") as stream:
        shelf, log = Shelf(arguments.data, say), JsonLog(stream)
        published = Published.of(plan, shelf, arguments.out, log)
        jobs = Jobs(published.request, arguments.out / ".stores" / "published", arguments.out, log)
        say(f"one Job of {len(published.request.items)} items")
        together = jobs.together()
        say(f"{len(published.request.items)} single Jobs")
        singles = jobs.one_by_one()
        Study(plan, shelf, arguments.out, log).run()
        loading = _loading(shelf, arguments.move, arguments.out, log)
    by_case = {row.case: row for row in read_rows([arguments.out]) if row.way == TUNED}
    rows = [by_case[case] for case in plan.cases()]
    drift = published.drift_seconds
    totals = [of_jobs(TOGETHER, [together], drift), of_jobs(SINGLE, singles, drift), of_tuning(rows, loading)]
    sys.stdout.write(f"{table(totals)}\n{adapters_table(together, singles, rows)}")
    return 0


def _keep_to_one_processor() -> None:
    processors = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {processors[os.getpid() % len(processors)]})
    fix_threads()


def _loading(shelf: Shelf, move: str, out: Path, log: Log) -> float:
    """CPU seconds of loading both bases, measured once."""
    file = out / ".loading.s"
    if not file.is_file():
        watch = Stopwatch(log)
        shelf.load(move)
        file.write_text(str(watch.seconds()), encoding="utf-8")
    return float(file.read_text(encoding="utf-8"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="results, one JSON file each")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folders banking77 and math_text")
    parser.add_argument("--move", default="harder", choices=sorted(MOVES))
    parser.add_argument("--size", type=int, default=200, help="training examples to repair with")
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--small", action="store_true", help=f"two adapters, at most {SMALL_STEPS} steps to repair one")
    parser.add_argument("--adapter-steps", type=int, default=60, help="that the old adapters are trained for")
    return parser


if __name__ == "__main__":
    sys.exit(main())
