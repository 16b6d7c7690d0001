"""What a study is made on: SmolLM2, its further versions of growing distance, tasks, and an adapter per task and seed.

Everything is made once and kept in the cache folder under a name that says how it was made.
"""

from __future__ import annotations

import fcntl
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from answers import one_word_each
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from readapt_demo import tasks as generated
from readapt_demo import training
from readapt_demo.models import base_v1, cache_root
from readapt_runtime.adapt.base import LoadedBase, load_base
from readapt_runtime.adapt.data import Splits, read_examples, split
from readapt_runtime.adapt.item import Move
from readapt_runtime.adapt.retrain import blank
from readapt_runtime.adapt.tokens import encode
from readapt_runtime.adapt.tuning import Evaluation, Lessons, Tuning, tune
from readapt_runtime.drift import measure, read_drift
from readapt_runtime.lora_format import LoraAdapter, LoraModule, base_shapes, read_adapter, write_adapter
from readapt_runtime.progress import JsonLog

Say = Callable[[str], None]
INTENTS = "intents20"
"""A task of twenty intents; ``intents20+19`` has the twenty after the first nineteen, and so on."""
RANK, SCALE = 8, 2.0
ADAPTER_STEPS, ADAPTER_RATE, ADAPTER_BATCH = 120, 1e-3, 16
_RECORDS = 30
"""Generated records per step: enough to read none of them twice."""
_INTENTS = 20


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
_GENERATED = {"parcels": generated.PARCELS, "shifts": generated.SHIFTS}


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

    def moved(self, move: BaseMove, seed: int) -> Path:
        """The version after ``move``; ``seed`` orders the text."""
        name = self._name(move, seed)

        def make(out: Path) -> None:
            texts = self._texts(move, seed)
            training.continue_training(self.v1(), texts, out, move.steps, move.rate, self._say)

        return self._made(name, make)

    def drift(self, move: BaseMove, seed: int) -> Path:
        """What ``move`` changed, as a drift artifact."""
        moved = self.moved(move, seed)
        return self._made(f"drift-{self._name(move, seed)}", lambda out: self._measure(moved, out))

    def task(self, name: str, train: int, seed: int) -> Splits:
        """``train`` examples to repair with, drawn by ``seed``; validation and test as they are, test at most 800."""
        folder = self._task_folder(name)
        parts = {part: read_examples(folder / f"{part}.jsonl") for part in ("train", "validation", "test")}
        chosen = random.Random(seed).sample(parts["train"], min(train, len(parts["train"])))
        test = random.Random(0).sample(parts["test"], min(800, len(parts["test"])))
        return split(chosen, parts["validation"], test)

    def load(self, name: str) -> Move:
        """A move of MOVES in memory."""
        old, new = self.v1(), self.moved(MOVES[name], seed=0)
        pair = (load_base(folder, f"sha256:{key * 64}") for folder, key in ((old, "1"), (new, "2")))
        return Move(*pair, read_drift(self.drift(MOVES[name], seed=0)))

    def adapter(self, task: str, seed: int, steps: int = ADAPTER_STEPS) -> Path:
        """A LoRA of rank 8 on all linear modules of v1, trained on all of the task's training examples."""
        name = f"adapter-{task}-{steps}-{ADAPTER_RATE:g}-{seed}"
        return self._made(name, lambda out: self._train(task, seed, steps, out))

    def _task_folder(self, name: str) -> Path:
        if name in _GENERATED:
            splits = generated.generate(_GENERATED[name], 2000, 1000, 800)
            return self._made(f"task-{name}", lambda out: generated.write_splits(splits, out))
        if self._data is None:
            raise SystemExit(f"{name} needs --data; without it there are {', '.join(_GENERATED)}")
        if name.startswith(INTENTS):
            source, skipped = self._data / "banking77", int(name.removeprefix(INTENTS) or 0)
            tokenizer = AutoTokenizer.from_pretrained(self.v1())
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


def cut_intents(source: Path, out: Path, tokenizer: PreTrainedTokenizerBase, skipped: int = 0) -> None:
    """Twenty intents of Banking77, the most frequent after ``skipped``; one word answers each, of its name if possible.

    With words that say nothing 120 steps come to 58 % only, and any tuning then beats the adapter that it should equal.
    """
    parts = {part: _lines(source / f"{part}.jsonl") for part in ("train", "validation", "test")}
    counts = Counter(row["completion"].strip() for row in parts["train"])
    names = sorted(counts, key=lambda name: (-counts[name], name))[skipped:][:_INTENTS]
    words = one_word_each(names, tokenizer)
    for part, rows in parts.items():
        kept = [
            {"prompt": row["prompt"], "completion": words[row["completion"].strip()]}
            for row in rows
            if row["completion"].strip() in words
        ]
        (out / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")


def _lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _empty(base: LoadedBase, folder: Path) -> LoraAdapter:
    return LoraAdapter(
        {
            name: LoraModule(name, torch.zeros(RANK, shape.into), torch.zeros(shape.out, RANK), SCALE)
            for name, shape in base_shapes(folder).items()
        }
    )
