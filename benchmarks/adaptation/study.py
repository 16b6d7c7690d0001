"""The whole study in one command: what to do with an adapter when its base moves, and what each part of ours is worth.

    .venv/bin/python benchmarks/adaptation/study.py --out out/study [--data DIR] [--small] [--processes N]

Runs the other scripts of this folder, N at a time (default: as many as there are processors), each with its output in a
folder of --out and what it says in a .log beside it:

    cases       every way over every (move, task, size, seed); as many processes as N, which share the cases
    moves       Copy alone over more moves, for the predictor
    ablations   ways of finding a start, and of tuning from it, over the strong and the harder move
    fleet       eight adapters over one move: one Job, single Jobs, plain tuning
    continual   SD-LoRA on Banking77 (only with --data)
    predictor   how well Copy's loss is told beforehand, from cases and moves; last

What the scripts print is collected in ``report.md``. Stopped and started with the same arguments it goes on: every
script keeps what it has computed. ``--small`` is less of it: one task, the harder move with 200 examples, three seeds
and a third of the steps; Copy alone over two more moves; a fleet of two; no ablations and no continual learning.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_SEEDS = 3


@dataclass(frozen=True, slots=True)
class Step:
    """One process."""

    name: str
    """Of its log, and of its part of the report."""
    script: str
    arguments: tuple[str, ...]

    @property
    def command(self) -> list[str]:
        return [sys.executable, str(_HERE / self.script), *self.arguments]


@dataclass(frozen=True, slots=True)
class Plan:
    out: Path
    data: Path | None
    small: bool
    processes: int
    move_seeds: int = 1
    """Orders of the text of each move."""
    base: Path | None = None
    """For continual learning; None: the study's v1."""

    def work(self) -> list[Step]:
        """What may run at the same time, the longest first."""
        more = [] if self.small else [*self._continual(), *self._ablations()]
        return [*self._shared("cases", self._cases()), self._fleet(), *more, *self._shared("moves", self._moves())]

    def tables(self) -> list[Step]:
        """What is made of the rows afterwards, seconds each."""
        studies = [str(self.out / name) for name in ("cases", "moves")]
        predictor = ("--study", *studies, *self._data())
        return [
            Step("cases", "cases.py", (*self._out("cases"), *self._data(), "--tables-only")),
            Step("predictor", "predictor.py", predictor),
        ]

    def _cases(self) -> list[str]:
        if self.small:
            return ["--small"]
        return ["--seeds", str(_SEEDS), "--moves", *self._seeded("mild", "strong", "harder")]

    def _moves(self) -> list[str]:
        """Together with those of the cases at least three, so that a law is fitted to two and tried on another."""
        names = ("mild", "strong") if self.small else ("mild", "firm", "strong", "severe", "records")
        tasks = ["intents20" if self.data else "parcels"] if self.small else []
        chosen = ["--tasks", *tasks] if tasks else []
        seeds = 1 if self.small else _SEEDS
        return ["--ways", "Copy", "--sizes", "200", "--seeds", str(seeds), "--moves", *self._seeded(*names), *chosen]

    def _shared(self, name: str, arguments: Sequence[str]) -> list[Step]:
        """The cases of one plan, dealt to all processes."""
        parts = range(1, self.processes + 1)
        whole = (*self._out(name), *self._data(), *arguments)
        return [Step(f"{name}-{part}", "cases.py", (*whole, "--part", f"{part}/{self.processes}")) for part in parts]

    def _ablations(self) -> list[Step]:
        return [
            Step(name, "ablations.py", (*self._out(name), *self._data(), "--move", move, "--seeds", str(_SEEDS)))
            for move in ("harder", "strong")
            for name in (f"ablations-{move}",)
        ]

    def _fleet(self) -> Step:
        return Step("fleet", "fleet.py", (*self._out("fleet"), *self._data(), *(["--small"] if self.small else [])))

    def _continual(self) -> list[Step]:
        if self.data is None:
            return []
        base = ("--base", str(self.base)) if self.base else ()
        out = ("--out", str(self.out / "continual.jsonl"))
        return [Step("continual", "continual.py", (*base, "--data", str(self.data / "banking77"), *out))]

    def _seeded(self, *moves: str) -> list[str]:
        return [f"{move}@{seed}" if seed else move for move in moves for seed in range(self.move_seeds)]

    def _out(self, name: str) -> tuple[str, str]:
        return "--out", str(self.out / name)

    def _data(self) -> tuple[str, ...]:
        return () if self.data is None else ("--data", str(self.data))


@dataclass(frozen=True, slots=True)
class Runner:
    """Runs steps and keeps what they print."""

    out: Path
    say: Callable[[str], None]

    def run(self, steps: Sequence[Step], processes: int) -> list[Step]:
        """Those that failed; the others are done all the same."""
        with ThreadPoolExecutor(processes) as pool:
            codes = list(pool.map(self._step, steps))
        return [step for step, code in zip(steps, codes, strict=True) if code != 0]

    def printed(self, step: Step) -> str:
        file = self.out / f"{step.name}.md"
        return file.read_text(encoding="utf-8") if file.is_file() else ""

    def _step(self, step: Step) -> int:
        self.say(f"{step.name} begins: {shlex.join(step.command[1:])}")
        begin = time.monotonic()
        with (
            (self.out / f"{step.name}.md").open("w", encoding="utf-8") as told,
            (self.out / f"{step.name}.log").open("a", encoding="utf-8") as log,
        ):
            code = subprocess.run(step.command, stdout=told, stderr=log, check=False).returncode
        ended = "ended" if code == 0 else f"failed with code {code}, see {step.name}.log,"
        self.say(f"{step.name} {ended} after {time.monotonic() - begin:.0f} s")
        return code


def report(plan: Plan, runner: Runner) -> str:
    """What every script printed, under its name; the parts that share cases are told by their common tables."""
    steps = [*plan.tables(), *(step for step in plan.work() if step.script != "cases.py")]
    return "\n".join(f"## {step.name}\n\n{text}" for step in steps if (text := runner.printed(step)))


def say(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")


def main() -> int:
    arguments = _parser().parse_args()
    plan = Plan(
        arguments.out,
        arguments.data,
        arguments.small,
        arguments.processes or len(os.sched_getaffinity(0)),
        arguments.move_seeds,
        arguments.base,
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    runner = Runner(arguments.out, say)
    failed = [*runner.run(plan.work(), plan.processes), *runner.run(plan.tables(), 1)]
    text = report(plan, runner)
    (arguments.out / "report.md").write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folders banking77, arc_easy and math_text")
    parser.add_argument("--small", action="store_true", help="less of everything, for two processors")
    parser.add_argument("--processes", type=int, metavar="N", help="default: one per processor")
    parser.add_argument("--move-seeds", type=int, default=1, metavar="N", help="orders of the text of each move")
    parser.add_argument("--base", type=Path, metavar="DIR", help="for continual learning; default: that of the study")
    return parser


if __name__ == "__main__":
    sys.exit(main())
