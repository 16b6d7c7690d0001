"""Examples of an adapter's task, and who may look at which of them.

In: the JSON Lines of a Data artifact (``prompt``, ``completion``). Out: ``Splits``, whose parts share no prompt:

    train       fine-tuning
    search      the objective of the search over α and β            from validation
    stopping    when to stop tuning, which checkpoint to keep       from validation
    gate        the final test, seen by nothing else                test, else half of validation; each prompt once
    inputs      prompts for the old pair to answer

What the gate's tests promise holds for examples that do not depend on each other, and a copy of one depends on it
entirely; so there one example per prompt counts, also where its completions differ. Where there are inputs alone they
are divided among the first four, whose completions are empty. Membership follows from a hash of the prompt, so it does
not depend on the order of the files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from readapt_api.adaptation import Metric
from readapt_runtime.examples import BadData, read_pairs, read_prompts

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
    """The distinct completions of the training file, sorted: the labels of Accuracy; none where there are too many."""
    leaked: int
    """Examples and inputs that were dropped because their prompt is in another split."""
    repeated: int = 0
    """Examples of the gate that were dropped because another one has the same prompt."""
    inputs: tuple[str, ...] = ()
    labelled: bool = True
    """Whether completions are known."""

    @property
    def has_labels(self) -> bool:
        """Whether completions are labels, of which most come again and again."""
        return 0 < 2 * len(self.choices) <= len(self.train)

    def require_tuning(self) -> None:
        """Raises BadData unless there is enough to search and tune with."""
        for name in ("train", "search", "stopping"):
            count = len(getattr(self, name))
            if count < _LEAST:
                raise BadData(f"{count} examples are left for {name}, at least {_LEAST} are needed")


def read_splits(folder: Path, metric: Metric = Metric.ACCURACY) -> Splits:
    """The splits of a Data artifact, from as many of its files as are there."""
    train, validation, test = (
        read_examples(file) if file.is_file() else ()
        for file in (folder / f"{name}.jsonl" for name in ("train", "validation", "test"))
    )
    inputs = folder / "inputs.jsonl"
    return split(train, validation, test, read_inputs(inputs) if inputs.is_file() else (), metric)


def read_examples(path: Path) -> tuple[Example, ...]:
    """The examples of one JSON Lines file; raises BadData with the line number for anything malformed."""
    return tuple(Example(prompt, completion) for prompt, completion in read_pairs(path, str(path)))


def read_inputs(path: Path) -> tuple[str, ...]:
    """The prompts of one JSON Lines file; raises as ``read_examples``."""
    return tuple(read_prompts(path, str(path)))


def split(
    train: Sequence[Example],
    validation: Sequence[Example],
    test: Sequence[Example],
    inputs: Sequence[str] = (),
    metric: Metric = Metric.ACCURACY,
) -> Splits:
    """Divides the examples; ``test`` may be empty, then half of validation (by hash) is the gate's.

    Raises BadData when the metric does not fit the data and when nothing is left for the gate.
    """
    if not train and not validation:
        return _split_inputs(inputs, metric)
    offered = tuple(test) or tuple(e for e in validation if _byte(e.prompt) < _HALF)
    if not offered:
        raise BadData("no examples are left for the gate: give a test file or a larger validation file")
    gate = _for_gate(offered)
    tuning, leaked_validation = _without(validation, gate if test else ())
    if not test:
        tuning = tuple(e for e in tuning if _byte(e.prompt) >= _HALF)
    search, stopping = _divide(tuning)
    train_left, leaked_train = _without(train, (*gate, *search, *stopping))
    left, leaked_inputs = _new_prompts(inputs, (*train, *gate, *search, *stopping))
    return Splits(
        train=train_left,
        search=search,
        stopping=stopping,
        gate=gate,
        choices=_choices(train, (*offered, *search, *stopping), metric),
        leaked=leaked_validation + leaked_train + leaked_inputs,
        repeated=len(offered) - len(gate),
        inputs=left,
    )


def union(parts: Sequence[Splits]) -> Splits:
    """The splits of several tasks as those of one: each example stays where it was, unless its prompt is in two tasks.

    Raises BadData when there are more than MAX_CHOICES labels.
    """
    merged = {
        name: [e for part in parts for e in getattr(part, name)] for name in ("train", "search", "stopping", "gate")
    }
    whole = split(merged["train"], [*merged["search"], *merged["stopping"]], merged["gate"])
    leaked, repeated = (sum(getattr(part, name) for part in (whole, *parts)) for name in ("leaked", "repeated"))
    return replace(whole, leaked=leaked, repeated=repeated)


def _split_inputs(inputs: Sequence[str], metric: Metric) -> Splits:
    """Two fifths for the gate, one for search and stopping, two for training."""
    if not inputs:
        raise BadData("no examples: give train and validation, or inputs")
    if metric.needs_labels:
        raise BadData(f"{metric} needs train and validation; inputs without completions are judged by Agreement")
    prompts, dropped = _new_prompts(inputs, ())
    unlabelled = [Example(prompt, "") for prompt in prompts]
    gate = [e for e in unlabelled if _byte(e.prompt) < 2 * _FIFTH]
    search, stopping = _divide(e for e in unlabelled if 2 * _FIFTH <= _byte(e.prompt) < 3 * _FIFTH)
    if not gate:
        raise BadData(f"of {len(prompts)} inputs none is left for the gate: give more")
    return Splits(
        train=tuple(e for e in unlabelled if _byte(e.prompt) >= 3 * _FIFTH),
        search=search,
        stopping=stopping,
        gate=_for_gate(gate),
        choices=(),
        leaked=dropped,
        labelled=False,
    )


def _choices(train: Sequence[Example], others: Iterable[Example], metric: Metric) -> tuple[str, ...]:
    """The label set. Raises BadData where Accuracy cannot be measured with it."""
    found = tuple(sorted({e.completion for e in train}))
    if metric is Metric.ACCURACY and not 0 < len(found) <= MAX_CHOICES:
        raise BadData(f"Accuracy needs 1 to {MAX_CHOICES} distinct completions in train, there are {len(found)}")
    if not found:
        raise BadData("train has no examples")
    if metric is not Metric.ACCURACY:
        return found if len(found) <= MAX_CHOICES else ()
    foreign = sorted({e.completion for e in others} - set(found))
    if foreign:
        raise BadData(
            f"{len(foreign)} completions of validation and test are none of train's {len(found)} labels, such as "
            f"{foreign[0][:60]!r}"
        )
    return found


_HALF, _FIFTH = 128, 51
"""Of the 256 values of ``_byte``."""


def _byte(prompt: str) -> int:
    return hashlib.sha256(f"split\0{prompt}".encode()).digest()[0]


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


def _for_gate(examples: Iterable[Example]) -> tuple[Example, ...]:
    """One example per prompt, in the order in which the gate looks at them."""
    first: dict[str, Example] = {}
    for example in sorted(examples, key=lambda e: e.rank("gate")):
        first.setdefault(example.prompt, example)
    return tuple(first.values())


def _without(examples: Iterable[Example], others: Iterable[Example]) -> tuple[tuple[Example, ...], int]:
    """``examples`` whose prompt is not among ``others``, and how many were dropped."""
    prompts = {e.prompt for e in others}
    every = tuple(examples)
    kept = tuple(e for e in every if e.prompt not in prompts)
    return kept, len(every) - len(kept)


def _new_prompts(inputs: Sequence[str], others: Iterable[Example]) -> tuple[tuple[str, ...], int]:
    """Each of ``inputs`` once unless it is a prompt of ``others``, and how many were dropped."""
    known = {e.prompt for e in others}
    kept = tuple(dict.fromkeys(prompt for prompt in inputs if prompt not in known))
    return kept, len(inputs) - len(kept)
