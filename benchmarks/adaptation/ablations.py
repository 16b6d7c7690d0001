"""What each way of finding a start, and each way of tuning from it, comes to over one base move, as a Markdown table.

    .venv/bin/python benchmarks/adaptation/ablations.py --out out/ablations [--data DIR] [--move harder] [--task TASK]

One case of the study's shelf (``study_bases``): ways without a step of training (``starts``, ``start_gradients``),
then tuning from what the search found (``tunings``), for three seeds of adapter and training examples. All are judged
on the stopping examples, which neither search nor training sees. Every (way, seed) is one JSON file in --out and is not
computed again. Seconds are CPU seconds of one thread, without what all share: loading, yardstick, replay text, drift.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import start_gradients
import starts
import torch
import tunings
from cases import say
from intervals import mean_with_interval, share_with_interval
from starts import MIN_RETENTION, Ground, Start, fold_groups
from stopwatch import Stopwatch
from study_bases import ADAPTER_STEPS, MOVES, Shelf, read_study_adapter
from tabular import markdown

from readapt_runtime.adapt.base import LoadedBase
from readapt_runtime.adapt.data import Splits
from readapt_runtime.adapt.factors import attached, side_factors
from readapt_runtime.adapt.item import Move
from readapt_runtime.adapt.retention import cached_replay, cached_yardstick, retention, text_losses
from readapt_runtime.adapt.scoring import choice_scores, prepare
from readapt_runtime.adapt.search import Point
from readapt_runtime.lora_format import LoraAdapter
from readapt_runtime.progress import JsonLog, Log
from readapt_runtime.store import Store

SEARCH, SIBLINGS = "GP + EI", "what siblings chose"
STARTS = {**starts.WAYS, **start_gradients.WAYS}
WAYS = (*STARTS, *tunings.WAYS)


@dataclass(frozen=True, slots=True)
class Row:
    """One way for one seed."""

    way: str
    seed: int
    accuracy: float
    """On the stopping examples."""
    loss: float
    """Nats per token of the right completion, on the stopping examples."""
    retention: float | None
    kept: bool
    """Retention is at least MIN_RETENTION of Copy's."""
    seconds: float
    trials: int
    points: Sequence[tuple[float, float]]
    of_old: float
    """Accuracy of the old pair on the same examples."""
    of_copy: float | None
    """Retention of Copy."""


class Ablation:
    """The ways over the grounds of one case."""

    def __init__(self, out: Path, seeds: Sequence[int], ground: Callable[[int], Ground]) -> None:
        self._out = out
        self._seeds = seeds
        self._ground = ground

    def rows(self, ways: Sequence[str]) -> list[Row]:
        return [self.row(way, seed) for way in ways for seed in self._seeds]

    def row(self, way: str, seed: int) -> Row:
        """Out of its file, else computed and written there."""
        file = self._out / f"{re.sub(r'[^A-Za-z0-9]+', '-', way).strip('-')}-{seed}.json"
        if not file.is_file():
            found = self._compute(way, seed)
            file.write_text(json.dumps(asdict(found)), encoding="utf-8")
            say(f"{way}, seed {seed}: {100 * found.accuracy:.1f} %, loss {found.loss:.3f}, {found.seconds:.0f} s")
        return Row(**json.loads(file.read_text(encoding="utf-8")))

    def _compute(self, way: str, seed: int) -> Row:
        ground = self._ground(seed)
        if way == SIBLINGS:
            others = [Point(*self.row(SEARCH, other).points[0]) for other in self._seeds if other != seed]
            ground = replace(ground, siblings=others)
        if way in STARTS:
            watch = Stopwatch(ground.log)
            start = STARTS[way](ground)
        else:
            found = tuple(Point(*point) for point in self.row(SEARCH, seed).points)
            adapter, watch = fold_groups(ground.adapter, ground.move.drift, found), Stopwatch(ground.log)
            start = Start(tunings.WAYS[way].run(ground, adapter), points=())
        return _graded(way, ground, start, watch.seconds())


def _graded(way: str, ground: Ground, start: Start, seconds: float) -> Row:
    (accuracy, loss), new = grade(ground.move.new, ground, start.adapter), ground.move.new
    with attached(new.model, ground.side(start.adapter)):
        kept = retention(ground.yardstick, text_losses(new, ground.yardstick.tokens))
    enough = kept is None or ground.of_copy is None or kept.value >= MIN_RETENTION * ground.of_copy.value
    points = [(point.alpha, point.beta) for point in start.points]
    return Row(
        way=way,
        seed=ground.seed,
        accuracy=accuracy,
        loss=loss,
        retention=None if kept is None else kept.value,
        kept=enough,
        seconds=seconds,
        trials=start.trials,
        points=points,
        of_old=grade(ground.move.old, ground, ground.adapter)[0],
        of_copy=None if ground.of_copy is None else ground.of_copy.value,
    )


def grade(base: LoadedBase, ground: Ground, adapter: LoraAdapter) -> tuple[float, float]:
    """Accuracy, and nats per token of the right completion, on the stopping examples."""
    examples, choices = ground.splits.stopping, ground.splits.choices
    right = torch.tensor([choices.index(example.completion) for example in examples])
    with attached(base.model, side_factors(adapter, base)):
        scores = choice_scores(base, prepare(base, [example.prompt for example in examples], choices))
    hits = (scores.argmax(1) == right).double().mean()
    return float(hits), float(-scores[torch.arange(len(right)), right].mean())


def table(rows: Sequence[Row]) -> str:
    """A line per way, in the order of WAYS; intervals over seeds, differences seed by seed.

    *Recovered* is the share of what Copy lost against the old pair: gains over Copy, over losses of Copy.
    """
    copied = {row.seed: row.accuracy for row in rows if row.way == next(iter(STARTS))}
    head = ["way", "trials", "accuracy, %", "over Copy", "recovered", "loss, nats"]
    head += ["retention", "÷ Copy's", "kept", "CPU s", "α, β"]
    lines = []
    for way in WAYS:
        group = [row for row in rows if row.way == way]
        if group:
            paired = [row for row in group if row.seed in copied]
            gains = [100 * (row.accuracy - copied[row.seed]) for row in paired]
            lost = [100 * (row.of_old - copied[row.seed]) for row in paired]
            of_copys = [row.retention / row.of_copy for row in group if row.retention is not None and row.of_copy]
            lines.append(
                [
                    way,
                    str(group[0].trials),
                    mean_with_interval([100 * row.accuracy for row in group]),
                    mean_with_interval(gains, sign=True),
                    share_with_interval(gains, lost),
                    mean_with_interval([row.loss for row in group], digits=3),
                    mean_with_interval([row.retention for row in group if row.retention is not None], digits=3),
                    mean_with_interval(of_copys, digits=3),
                    f"{sum(row.kept for row in group)}/{len(group)}",
                    mean_with_interval([row.seconds for row in group], digits=0),
                    "; ".join(" ".join(f"{a:.2f}, {b:.2f}" for a, b in row.points) for row in group),
                ]
            )
    old = mean_with_interval([100 * row.of_old for row in {row.seed: row for row in rows}.values()])
    return f"Old pair: {old} %.\n\n{markdown(head, lines)}"


class Grounds:
    """The adapters of one case by seed, over a move that is loaded when the first is asked for."""

    def __init__(self, shelf: Shelf, case: argparse.Namespace, log: Log) -> None:
        self._shelf = shelf
        self._case = case
        self._log = log
        self._made: dict[int, Ground] = {}
        self._move: Move | None = None

    def __call__(self, seed: int) -> Ground:
        if seed not in self._made:
            case, shelf = self._case, self._shelf
            if self._move is None:
                self._move = shelf.load(case.move)
            adapter = read_study_adapter(shelf.adapter(case.task, seed, case.adapter_steps), shelf.v1())
            splits = shelf.task(case.task, case.size, seed)
            self._made[seed] = ground_of(self._move, adapter, splits, seed, Store(case.out / "store"), self._log)
        return self._made[seed]


def ground_of(move: Move, adapter: LoraAdapter, splits: Splits, seed: int, store: Store, log: Log) -> Ground:
    """With the yardstick and the replay text of the move, which ``store`` keeps."""
    yardstick, new = cached_yardstick(store, move.old, move.new), move.new
    with attached(new.model, side_factors(adapter, new)):
        of_copy = retention(yardstick, text_losses(new, yardstick.tokens))
    return Ground(move, adapter, splits, seed, yardstick, cached_replay(store, new).tokens, of_copy, (), log)


def main() -> int:
    arguments = _parser().parse_args()
    torch.set_num_threads(1)
    arguments.task = arguments.task or ("intents20" if arguments.data else "parcels")
    arguments.out.mkdir(parents=True, exist_ok=True)
    with (arguments.out / "log.jsonl").open("a", encoding="utf-8") as stream:
        grounds = Grounds(Shelf(arguments.data, say), arguments, JsonLog(stream))
        rows = Ablation(arguments.out, range(arguments.seeds), grounds).rows(arguments.ways)
    sys.stdout.write(table(rows))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="results of this case, one JSON file each"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="folders banking77, arc_easy, …, and math_text")
    parser.add_argument("--move", default="harder", choices=sorted(MOVES))
    parser.add_argument("--task", metavar="TASK", help="default: intents20, or parcels without --data")
    parser.add_argument("--size", type=int, default=200, help="training examples")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--adapter-steps", type=int, default=ADAPTER_STEPS, help="that the old adapters were trained for"
    )
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS), metavar="WAY")
    return parser


if __name__ == "__main__":
    sys.exit(main())
