"""Class-incremental learning without rehearsal: SD-LoRA beside what else one could do, as a Markdown table.

    .venv/bin/python benchmarks/adaptation/continual.py [--base DIR] --data DIR --out continual.jsonl [--quick]

``--base`` is a small causal language model (ours: SmolLM2-135M), ``--data`` a folder with train.jsonl and test.jsonl
(prompt, completion) of at least tasks × classes classes (ours: Banking77). The classes are dealt into tasks by each
seed; a task's training examples are seen while it is learned and never again. A question is answered by choosing among
the classes of all tasks so far; each class is one word of one token (``answers.py``).

    sequential            one LoRA, trained on one task after the other, by the likelihood of the right answer
    sequential, our loss  the same LoRA with the loss of `readapt learn` (continual/losses.py)
    SD-LoRA, choosing     directions and magnitudes with the first term of that loss alone, the counterpart of the paper
    SD-LoRA               what `readapt learn` does
    one per task          a LoRA per task, and an oracle that says which one to ask
    joint                 one LoRA that sees all tasks at once, in as many steps: what nothing incremental can beat

Every run is appended to ``--out`` when it ends, and not repeated when it is there: the benchmark can be stopped at any
time. Seconds are processor time of training, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from intervals import mean_with_interval
from sequence import Task, accuracies, joined, tasks_of

from readapt_api.digest import digest_path
from readapt_demo.models import base_v1
from readapt_runtime.adapt.base import LoadedBase, fix_threads, load_base
from readapt_runtime.adapt.factors import attached, side_factors
from readapt_runtime.continual.blocks import Learned
from readapt_runtime.continual.freezing import freeze
from readapt_runtime.continual.learning import Course, Pupil, descend
from readapt_runtime.continual.losses import KEEPING, AnswerLoss, ChoiceLoss
from readapt_runtime.continual.sequence import ALPHA, REDUCTION
from readapt_runtime.lora_format import LoraAdapter, Shape, base_shapes
from readapt_runtime.training.training import new_adapter


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is done."""

    tasks: int
    classes: int
    tested: int
    """Examples per class."""
    steps: int
    """Per task."""
    rank: int = 8
    batch_size: int = 8
    learning_rate: float = 1e-3


Lesson = AnswerLoss | ChoiceLoss

FULL = Scale(tasks=7, classes=11, tested=10, steps=60)
QUICK = Scale(tasks=3, classes=4, tested=4, steps=12)


@dataclass(frozen=True, slots=True)
class Run:
    """One method over one order of the classes."""

    method: str
    seed: int
    average: float
    """Accuracy over all tasks at the end."""
    learned: float | None
    """Accuracy on each task when it had just been learned, on average; None for joint training."""
    forgetting: float | None
    """What earlier tasks have lost since then, on average."""
    parameters: int
    """Numbers that are stored at the end."""
    seconds: float
    scale: Mapping[str, float]


@dataclass(slots=True)
class Bench:
    """A base, the tasks of one seed, and a clock of training."""

    base: LoadedBase
    shapes: Mapping[str, Shape]
    tasks: Sequence[Task]
    scale: Scale
    seed: int
    seconds: float = 0.0

    def new(self) -> LoraAdapter:
        return new_adapter(self.shapes, self.scale.rank, ALPHA)

    def train(self, learned: Learned, start: LoraAdapter, steps: int, loss: Callable[[], Lesson]) -> Pupil:
        """A pupil after ``steps`` steps; ``loss`` is made with what was learned before attached."""
        pupil = Pupil(self.base, learned, start, self.seed)
        course = Course(steps, self.scale.learning_rate, self.scale.batch_size, self.seed)
        begin = time.process_time()
        with pupil.attached():
            lesson = loss()
        for _ in descend(pupil, lesson, lesson.lengths, course):
            pass
        self.seconds += time.process_time() - begin
        return pupil

    def ask(self, adapter: LoraAdapter, asked: Sequence[Task], known: Sequence[Task]) -> list[float]:
        """Accuracy on each of ``asked``, among the classes of all ``known`` tasks."""
        hung = attached(self.base.model, side_factors(adapter, self.base))
        return accuracies(self.base, hung, asked, known)

    def answering(self, task: Task) -> Lesson:
        return AnswerLoss(self.base, task.train)

    def choosing(self, number: int, keeping: float) -> Lesson:
        """The loss of the task of this number, from 0 on."""
        task, before = self.tasks[number], self.tasks[:number]
        earlier = sorted(choice for other in before for choice in other.choices)
        examples = task.train[: self.scale.steps * self.scale.batch_size]
        return ChoiceLoss(self.base, examples, task.choices, earlier, keeping)

    def run(self, method: str, final: Sequence[float], fresh: Sequence[float], parameters: int) -> Run:
        """``fresh``: accuracy on each task when it had just been learned; empty where that means nothing."""
        lost = [before - now for before, now in zip(fresh[:-1], final, strict=False)]
        return Run(
            method=method,
            seed=self.seed,
            average=statistics.mean(final),
            learned=statistics.mean(fresh) if fresh else None,
            forgetting=statistics.mean(lost) if lost else None,
            parameters=parameters,
            seconds=round(self.seconds, 1),
            scale=asdict(self.scale),
        )


def sequential(bench: Bench, method: str, loss: Callable[[int], Lesson]) -> Run:
    """One LoRA for all tasks; ``loss`` of the task of a number."""
    adapter, fresh = bench.new(), []
    for number, task in enumerate(bench.tasks):
        _, adapter = bench.train(Learned(), adapter, bench.scale.steps, partial(loss, number)).outcome()
        fresh += bench.ask(adapter, [task], bench.tasks[: number + 1])
    return bench.run(method, bench.ask(adapter, bench.tasks, bench.tasks), fresh, _size(adapter))


def sd_lora(bench: Bench, method: str, keeping: float) -> Run:
    learned, fresh = Learned(), []
    for number, task in enumerate(bench.tasks):
        loss = partial(bench.choosing, number, keeping)
        pupil = bench.train(learned, bench.new(), bench.scale.steps, loss)
        learned = freeze(*pupil.outcome(), task.name, REDUCTION).learned
        fresh += bench.ask(learned.adapter, [task], bench.tasks[: number + 1])
    final = bench.ask(learned.adapter, bench.tasks, bench.tasks)
    return bench.run(method, final, fresh, learned.parameters)


def one_per_task(bench: Bench, method: str) -> Run:
    final, parameters = [], 0
    for task in bench.tasks:
        loss = partial(bench.answering, task)
        _, adapter = bench.train(Learned(), bench.new(), bench.scale.steps, loss).outcome()
        final += bench.ask(adapter, [task], bench.tasks)
        parameters += _size(adapter)
    return bench.run(method, final, final, parameters)


def joint(bench: Bench, method: str) -> Run:
    steps = bench.scale.steps * len(bench.tasks)
    loss = partial(bench.answering, joined(bench.tasks))
    _, adapter = bench.train(Learned(), bench.new(), steps, loss).outcome()
    return bench.run(method, bench.ask(adapter, bench.tasks, bench.tasks), [], _size(adapter))


METHODS: Mapping[str, Callable[[Bench, str], Run]] = {
    "sequential": lambda bench, name: sequential(bench, name, lambda number: bench.answering(bench.tasks[number])),
    "sequential, our loss": lambda bench, name: sequential(bench, name, lambda n: bench.choosing(n, KEEPING)),
    "SD-LoRA, choosing": lambda bench, name: sd_lora(bench, name, keeping=0.0),
    "SD-LoRA": lambda bench, name: sd_lora(bench, name, KEEPING),
    "one per task": one_per_task,
    "joint": joint,
}


def _size(adapter: LoraAdapter) -> int:
    return sum(m.a.numel() + m.b.numel() for m in adapter.modules.values())


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    scale = QUICK if arguments.quick else FULL
    scale = replace(scale, **{name: value for name in ("steps", "tested") if (value := getattr(arguments, name))})
    seeds = arguments.seeds or (1 if arguments.quick else 3)
    fix_threads()
    folder = arguments.base or base_v1(lambda text: None)
    base, shapes = load_base(folder, digest_path(folder)), base_shapes(folder)
    done = list(_finished(arguments.out, scale))
    for seed in range(seeds):
        tasks = tasks_of(arguments.data, base.tokenizer, scale.tasks, scale.classes, scale.tested, seed)
        for method in arguments.methods:
            if not any((run.method, run.seed) == (method, seed) for run in done):
                done.append(METHODS[method](Bench(base, shapes, tasks, scale, seed), method))
                _append(arguments.out, done[-1])
    sys.stdout.write("\n".join(table(done)) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, metavar="DIR", help="default: SmolLM2, as the study has it")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON Lines, one run each")
    parser.add_argument("--quick", action="store_true", help="three small tasks, one seed, a few minutes")
    parser.add_argument("--steps", type=int, help=f"per task; default: {FULL.steps}, quick {QUICK.steps}")
    parser.add_argument("--tested", type=int, help=f"examples per class; default: {FULL.tested}, quick {QUICK.tested}")
    parser.add_argument("--seeds", type=int, help="orders of the classes; default: 3, quick 1")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="METHOD")
    return parser


def _finished(out: Path, scale: Scale) -> Iterator[Run]:
    """The runs of this scale that an earlier call left."""
    for line in out.read_text().splitlines() if out.is_file() else ():
        run = Run(**json.loads(line))
        if run.scale == asdict(scale):
            yield run


def _append(out: Path, run: Run) -> None:
    with out.open("a") as stream:
        stream.write(json.dumps(asdict(run)) + "\n")
    sys.stderr.write(f"{run.method}, seed {run.seed}: {run.average:.3f}, {run.seconds:.0f} s\n")


def table(runs: Sequence[Run]) -> Iterator[str]:
    """Mean and half the width of the 95 % interval over the seeds; accuracy in per cent, forgetting in points."""
    yield "| | average accuracy, % | when just learned, % | forgetting, points | stored numbers | seconds |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for method in METHODS:
        mine = [run for run in runs if run.method == method]
        if mine:
            cells = [
                mean_with_interval([100 * run.average for run in mine]),
                mean_with_interval([100 * run.learned for run in mine if run.learned is not None]),
                mean_with_interval([100 * run.forgetting for run in mine if run.forgetting is not None]),
                f"{statistics.mean(run.parameters for run in mine):,.0f}",
                f"{statistics.mean(run.seconds for run in mine):.0f}",
            ]
            yield f"| {method} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
