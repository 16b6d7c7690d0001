"""A data set of classes as a sequence of tasks that share no class, and how well what was learned answers each."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from answers import one_word_each
from transformers import PreTrainedTokenizerBase

from readapt_runtime.adapt.base import LoadedBase
from readapt_runtime.adapt.data import Example, read_examples
from readapt_runtime.adapt.scoring import choices_of, prepare


@dataclass(frozen=True, slots=True)
class Task:
    """Some of the classes."""

    name: str
    choices: tuple[str, ...]
    train: tuple[Example, ...]
    test: tuple[Example, ...]


def tasks_of(
    folder: Path, tokenizer: PreTrainedTokenizerBase, count: int, size: int, per_class: int, seed: int
) -> list[Task]:
    """``count`` tasks of ``size`` classes each, dealt by ``seed``; of each class the same ``per_class`` test examples.

    Raises ValueError when there are too few classes.
    """
    train, test = (_by_class(folder / f"{split}.jsonl") for split in ("train", "test"))
    words = one_word_each(sorted(train), tokenizer)
    train, test = _renamed(train, words), _renamed(test, words)
    classes = sorted(train)
    if len(classes) < count * size:
        raise ValueError(f"{folder} has {len(classes)} classes, {count} tasks of {size} need {count * size}")
    random.Random(seed).shuffle(classes)
    return [_task(i, sorted(classes[i * size : (i + 1) * size]), train, test, per_class) for i in range(count)]


def _by_class(path: Path) -> dict[str, list[Example]]:
    found: dict[str, list[Example]] = defaultdict(list)
    for example in read_examples(path):
        found[example.completion].append(example)
    return found


def _renamed(classes: Mapping[str, list[Example]], words: Mapping[str, str]) -> dict[str, list[Example]]:
    return {words[c]: [Example(e.prompt, words[c]) for e in examples] for c, examples in classes.items()}


def _task(
    index: int, choices: list[str], train: dict[str, list[Example]], test: dict[str, list[Example]], per_class: int
) -> Task:
    tested = [e for c in choices for e in sorted(test[c], key=lambda e: e.rank("test"))[:per_class]]
    learned = sorted((e for c in choices for e in train[c]), key=lambda e: e.rank("train"))
    return Task(f"task {index + 1}", tuple(choices), tuple(learned), tuple(tested))


def accuracies(
    base: LoadedBase, hung: AbstractContextManager[None], asked: Sequence[Task], known: Sequence[Task]
) -> list[float]:
    """Of each of ``asked``; the choices are the answers of all ``known`` tasks, nothing tells whose a prompt is."""
    choices = sorted(c for task in known for c in task.choices)
    examples = [e for task in asked for e in task.test]
    with hung:
        chosen = choices_of(base, prepare(base, [e.prompt for e in examples], choices))
    right = iter([choices[c] == e.completion for c, e in zip(chosen, examples, strict=True)])
    return [sum(next(right) for _ in task.test) / len(task.test) for task in asked]


def joined(tasks: Sequence[Task]) -> Task:
    """All tasks as one."""
    return Task(
        "all",
        tuple(sorted(c for task in tasks for c in task.choices)),
        tuple(e for task in tasks for e in task.train),
        tuple(e for task in tasks for e in task.test),
    )
