"""What a study is made on: SmolLM2, its further versions of growing distance, tasks, and an adapter per task and seed.

Everything is made once and kept in the cache folder under a name that says how it was made.
"""

from __future__ import annotations

import fcntl
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch
from answers import one_word_each
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from readapt_api.adaptation import Metric
from readapt_demo import tasks as generated
from readapt_demo import training
from readapt_demo.models import base_v1, cache_root
from readapt_runtime.adapt.base import LoadedBase, load_base
from readapt_runtime.adapt.data import Example, Splits, read_examples, split
from readapt_runtime.adapt.item import Move
from readapt_runtime.adapt.retrain import blank
from readapt_runtime.adapt.tokens import encode
from readapt_runtime.adapt.tuning import Evaluation, Lessons, Tuning, tune
from readapt_runtime.drift import measure, read_drift
from readapt_runtime.lora_format import LoraAdapter, LoraModule, base_shapes, read_adapter, write_adapter
from readapt_runtime.progress import JsonLog, Log

Say = Callable[[str], None]
INTENTS = "intents20"
"""A task of twenty intents; ``intents20+19`` has the twenty after the first nineteen, and so on."""
RANK, SCALE = 8, 2.0
ADAPTER_STEPS, ADAPTER_RATE, ADAPTER_BATCH = 120, 1e-3, 16
_RECORDS = 30
"""Generated records per step: enough to read none of them twice."""
_INTENTS = 20
_TESTED = 800
"""Examples of the gate."""


@dataclass(frozen=True, slots=True)
class BaseMove:
    """Continued full training of v1 on running text, 8 x 128 tokens a step."""

    name: str
    steps: int
    rate: float
    text: Literal["math", "records"] = "math"
    """``math``: of the data folder, generated records where there is none."""


MOVES = {
    move.name: move
    for move in (
        BaseMove("mild", 24, 2e-5),
        BaseMove("strong", 49, 2e-4),
        BaseMove("harder", 71, 5e-4),
        BaseMove("firm", 36, 1e-4),
        BaseMove("severe", 71, 1e-3),
        BaseMove("records", 48, 5e-4, "records"),
    )
}
"""The first three are the study's, the others the predictor's as well; ``records`` is the demo's."""
SPELLED = "-spelled"
"""Ends the name of a task whose answers are generated, several words each, and judged by ExactMatch: the full names of
the intents, or both groups that a generated label stands for."""
_GENERATED = {"parcels": generated.PARCELS, "shifts": generated.SHIFTS}


def metric_of(task: str) -> Metric:
    return Metric.EXACT_MATCH if task.endswith(SPELLED) else Metric.ACCURACY


def move_of(name: str) -> tuple[BaseMove, int]:
    """``harder`` is that of seed 0, ``harder@2`` that whose text is ordered by seed 2. Raises ValueError for others."""
    kind, _, seed = name.partition("@")
    if kind not in MOVES:
        raise ValueError(f"{name}: there are {', '.join(MOVES)}, each with @SEED")
    return MOVES[kind], int(seed or 0)


class Shelf:
    """The cache folder of the study."""

    def __init__(self, data: Path | None, say: Say) -> None:
        """``data``: a folder of task folders (train, validation, test .jsonl) and ``math_text``; None: generated."""
        self._data = data
        self._say = say
        self._root = cache_root() / "study"
        self._root.mkdir(parents=True, exist_ok=True)

    def v1(self) -> Path:
        return base_v1(self._say)

    def moved(self, move_name: str) -> Path:
        """The version after a move that ``move_of`` knows."""
        move, seed = move_of(move_name)
        name = self._name(move, seed)

        def make(out: Path) -> None:
            texts = self._texts(move, seed)
            training.continue_training(self.v1(), texts, out, move.steps, move.rate, self._say)

        return self._made(name, make)

    def drift(self, move: str) -> Path:
        """What a move changed, as a drift artifact."""
        moved = self.moved(move)
        return self._made(f"drift-{self._name(*move_of(move))}", lambda out: self._measure(moved, out))

    def measure_drift(self, move: str, log: Log) -> None:
        """As ``drift``, and throws it away."""
        old, new = self.v1(), self.moved(move)
        with TemporaryDirectory() as scratch:
            measure(old, new, Path(scratch) / "drift", log)

    def task(self, name: str, train: int, seed: int) -> Splits:
        """What ``examples`` are to those who repair."""
        parts = self.examples(name, train, seed)
        return split(parts["train"], parts["validation"], parts["test"], metric=metric_of(name))

    def examples(self, name: str, train: int, seed: int) -> Mapping[str, Sequence[Example]]:
        """``train`` examples to repair with, drawn by ``seed``; validation and test as they are, test at most 800."""
        folder = self._task_folder(name)
        parts = {part: read_examples(folder / f"{part}.jsonl") for part in ("train", "validation", "test")}
        chosen = random.Random(seed).sample(parts["train"], min(train, len(parts["train"])))
        test = random.Random(0).sample(parts["test"], min(_TESTED, len(parts["test"])))
        return {"train": chosen, "validation": parts["validation"], "test": test}

    def spare(self, name: str, splits: Splits) -> tuple[Example, ...]:
        """Up to 800 test examples more, whose prompts are in none of ``splits``."""
        known = {e.prompt for part in (splits.train, splits.search, splits.stopping, splits.gate) for e in part}
        trained = {e.prompt for e in read_examples(self._task_folder(name) / "train.jsonl")}
        test = read_examples(self._task_folder(name) / "test.jsonl")
        left = [e for e in test if e.prompt not in known and e.prompt not in trained]
        return tuple(random.Random(1).sample(left, min(_TESTED, len(left))))

    def load(self, name: str) -> Move:
        """A move that ``move_of`` knows, in memory."""
        old, new = self.v1(), self.moved(name)
        pair = (load_base(folder, f"sha256:{key * 64}") for folder, key in ((old, "1"), (new, "2")))
        return Move(*pair, read_drift(self.drift(name)))

    def adapter(self, task: str, seed: int, steps: int = ADAPTER_STEPS) -> Path:
        """A LoRA of rank 8 on all linear modules of v1, trained on all of the task's training examples."""
        name = f"adapter-{task}-{steps}-{ADAPTER_RATE:g}-{seed}"
        return self._made(name, lambda out: self._train(task, seed, steps, out))

    def _task_folder(self, name: str) -> Path:
        plain, spelled = name.removesuffix(SPELLED), name.endswith(SPELLED)
        if plain in _GENERATED:
            return self._made(f"task-{name}-{2 * _TESTED}", lambda out: _generate(_GENERATED[plain], out, spelled))
        if self._data is None:
            known = [task + end for task in _GENERATED for end in ("", SPELLED)]
            raise SystemExit(f"{name} needs --data; without it there are {', '.join(known)}")
        if name.startswith(INTENTS):
            source, skipped = self._data / "banking77", int(plain.removeprefix(INTENTS) or 0)
            tokenizer = None if spelled else AutoTokenizer.from_pretrained(self.v1())
            return self._made(f"task-{name}", lambda out: cut_intents(source, out, tokenizer, skipped))
        return self._data / name

    def _name(self, move: BaseMove, seed: int) -> str:
        text = "math" if self._data and move.text == "math" else "generated"
        return f"{move.name}-{text}-{move.steps}-{move.rate:g}-{seed}"

    def _measure(self, moved: Path, out: Path) -> None:
        with (out / "log.jsonl").open("w", encoding="utf-8") as stream:
            measure(self.v1(), moved, out, JsonLog(stream))

    def _texts(self, move: BaseMove, seed: int) -> list[str]:
        if self._data is None or move.text == "records":
            return generated.upgrade_text(_RECORDS * move.steps, seed)
        lines = (self._data / "math_text" / "train.jsonl").read_text(encoding="utf-8").splitlines()
        texts = [row["prompt"] + row["completion"] for row in map(json.loads, lines)]
        random.Random(seed).shuffle(texts)
        return texts

    def _train(self, task: str, seed: int, steps: int, out: Path) -> None:
        base = load_base(self.v1(), f"sha256:{'0' * 64}")
        splits = self.task(task, 1_000_000, 0)
        start = blank(_empty(base, self.v1()))
        settings = Tuning(
            max_steps=steps,
            learning_rate=ADAPTER_RATE,
            batch_size=ADAPTER_BATCH,
            seed=seed,
            evaluations=1,
            strong=0.0,
            weak=0.0,
            replay=0.0,
        )
        self._say(f"training the adapter of {task}, seed {seed}: {steps} steps")
        first = Evaluation(0, 0.0, None, feasible=True, ready=False)
        lessons = Lessons(encode(base, splits.train))
        tuned = tune(base, start, first, lessons, settings, lambda step, *_: Evaluation(step, 1.0, None, True, False))
        write_adapter(out, tuned.adapter, base.digest)

    def _made(self, name: str, make: Callable[[Path], None]) -> Path:
        folder = self._root / name
        with alone(self._root / f".{name}.lock"):
            if not folder.is_dir():
                self._say(f"making {name}")
                scratch = self._root / f".making-{name}"
                shutil.rmtree(scratch, ignore_errors=True)
                scratch.mkdir()
                make(scratch)
                scratch.rename(folder)
        return folder


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Waits while another process of the study is within the same block."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def read_study_adapter(folder: Path, base: Path) -> LoraAdapter:
    return read_adapter(folder, base_shapes(base))


def cut_intents(source: Path, out: Path, tokenizer: PreTrainedTokenizerBase | None, skipped: int = 0) -> None:
    """Twenty intents of Banking77, the most frequent after ``skipped``.

    One word answers each, of its name if possible; without ``tokenizer`` it is the name as it is. With words that say
    nothing 120 steps come to 58 % only, and any tuning then beats the adapter that it should equal.
    """
    parts = {part: _lines(source / f"{part}.jsonl") for part in ("train", "validation", "test")}
    counts = Counter(row["completion"].strip() for row in parts["train"])
    names = sorted(counts, key=lambda name: (-counts[name], name))[skipped:][:_INTENTS]
    words = {name: f" {name}" for name in names} if tokenizer is None else one_word_each(names, tokenizer)
    for part, rows in parts.items():
        kept = [
            Example(row["prompt"], words[row["completion"].strip()])
            for row in rows
            if row["completion"].strip() in words
        ]
        write_examples(out, {part: kept})


def write_examples(folder: Path, parts: Mapping[str, Sequence[Example]]) -> None:
    """JSON Lines, one file per part."""
    for part, examples in parts.items():
        lines = (json.dumps({"prompt": e.prompt, "completion": e.completion}) + "\n" for e in examples)
        (folder / f"{part}.jsonl").write_text("".join(lines), encoding="utf-8")


def _generate(task: generated.Task, out: Path, spelled: bool) -> None:
    """Spelled, the answer is not the label's word but the two groups that it stands for, such as `` fish Europe``."""
    groups = {word: f" {first} {second}" for (first, second), word in task.labels.items()}
    for part, rows in generated.generate(task, 2000, 1000, 2 * _TESTED).items():
        answers = [groups[row["completion"].strip()] if spelled else row["completion"] for row in rows]
        write_examples(out, {part: [Example(row["prompt"], a) for row, a in zip(rows, answers, strict=True)]})


def _lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _empty(base: LoadedBase, folder: Path) -> LoraAdapter:
    return LoraAdapter(
        {
            name: LoraModule(name, torch.zeros(RANK, shape.into), torch.zeros(shape.out, RANK), SCALE)
            for name, shape in base_shapes(folder).items()
        }
    )
