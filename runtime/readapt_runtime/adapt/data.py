"""Examples of an adapter's task, and who may look at which of them.

In: the JSON Lines of a Data artifact (``prompt``, ``completion``). Out: ``Splits``, whose four parts share no prompt:

    train       fine-tuning
    search      the objective of the search over α and β            from validation
    stopping    when to stop tuning, which checkpoint to keep       from validation
    gate        the final test, seen by nothing else                test, else half of validation

Membership follows from a hash of the prompt, so it does not depend on the order of the files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from readapt_runtime.examples import BadData, read_pairs

MAX_CHOICES = 256
SEARCH_EXAMPLES = 96
STOPPING_EXAMPLES = 320
_LEAST = 8
"""Fewer examples than this in search or stopping say nothing."""


@dataclass(frozen=True, slots=True)
class Example:
    """The model reads ``prompt`` and should answer ``completion`` (which brings its own leading space)."""

    prompt: str
    completion: str

    def rank(self, salt: str) -> str:
        """A pseudo-random sort key that depends on nothing but the example and ``salt``."""
        return hashlib.sha256(f"{salt}\0{self.prompt}\0{self.completion}".encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Splits:
    train: tuple[Example, ...]
    search: tuple[Example, ...]
    stopping: tuple[Example, ...]
    gate: tuple[Example, ...]
    """In the fixed pseudo-random order in which the gate looks at them."""
    choices: tuple[str, ...]
    """The distinct completions of the training file, sorted: the labels of Accuracy."""
    leaked: int
    """Examples of train and validation that were dropped because their prompt is in another split."""

    def require_tuning(self) -> None:
        """Raises BadData unless there is enough to search and tune with."""
        for name in ("train", "search", "stopping"):
            count = len(getattr(self, name))
            if count < _LEAST:
                raise BadData(f"{count} examples are left for {name}, at least {_LEAST} are needed")


def read_splits(folder: Path) -> Splits:
    """The splits of a Data artifact: train.jsonl, validation.jsonl and, when it is there, test.jsonl."""
    test = folder / "test.jsonl"
    return split(
        read_examples(folder / "train.jsonl"),
        read_examples(folder / "validation.jsonl"),
        read_examples(test) if test.is_file() else (),
    )


def read_examples(path: Path) -> tuple[Example, ...]:
    """The examples of one JSON Lines file; raises BadData with the line number for anything malformed."""
    return tuple(Example(prompt, completion) for prompt, completion in read_pairs(path, str(path)))


def split(train: Sequence[Example], validation: Sequence[Example], test: Sequence[Example]) -> Splits:
    """Divides the examples; ``test`` may be empty, then half of validation (by hash) is the gate's.

    Raises BadData when train has no label or more than MAX_CHOICES, or when nothing is left for the gate.
    """
    choices = tuple(sorted({e.completion for e in train}))
    if not 0 < len(choices) <= MAX_CHOICES:
        raise BadData(f"Accuracy needs 1 to {MAX_CHOICES} distinct completions in train, there are {len(choices)}")
    gate = tuple(test) or tuple(e for e in validation if _half(e.prompt))
    if not gate:
        raise BadData("no examples are left for the gate: give a test file or a larger validation file")
    tuning, leaked_validation = _without(validation, gate if test else ())
    if not test:
        tuning = tuple(e for e in tuning if not _half(e.prompt))
    search, stopping = _divide(tuning)
    train_left, leaked_train = _without(train, (*gate, *search, *stopping))
    return Splits(
        train=train_left,
        search=search,
        stopping=stopping,
        gate=tuple(sorted(gate, key=lambda e: e.rank("gate"))),
        choices=choices,
        leaked=leaked_validation + leaked_train,
    )


def _half(prompt: str) -> bool:
    return hashlib.sha256(f"split\0{prompt}".encode()).digest()[0] < 128


def _divide(examples: Iterable[Example]) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """A quarter, at most SEARCH_EXAMPLES, for the search, and the rest, bounded too, for early stopping.

    Equal prompts stay together: whole groups are dealt in the order of the prompt's hash.
    """
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.prompt, []).append(example)
    ordered = [groups[p] for p in sorted(groups, key=lambda p: Example(p, "").rank("tuning"))]
    quarter = min(SEARCH_EXAMPLES, -(-len(ordered) // 4))
    return tuple(_flat(ordered[:quarter])), tuple(_flat(ordered[quarter : quarter + STOPPING_EXAMPLES]))


def _flat(groups: Iterable[Iterable[Example]]) -> Iterator[Example]:
    return (example for group in groups for example in group)


def _without(examples: Iterable[Example], others: Iterable[Example]) -> tuple[tuple[Example, ...], int]:
    """``examples`` whose prompt is not among ``others``, and how many were dropped."""
    prompts = {e.prompt for e in others}
    every = tuple(examples)
    kept = tuple(e for e in every if e.prompt not in prompts)
    return kept, len(every) - len(kept)
