"""Who may look at which examples."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from readapt_runtime.adapt.data import MAX_CHOICES, Example, read_examples, split
from readapt_runtime.examples import BadData


def some(prefix: str, count: int, labels: int = 4) -> list[Example]:
    return [Example(f"{prefix} {i}", f" label{i % labels}") for i in range(count)]


@pytest.mark.parametrize("test", [some("test", 40), []], ids=["test file", "validation only"])
def test_no_prompt_is_in_two_splits(test: list[Example]) -> None:
    train, validation = some("train", 100), some("validation", 80)
    leaks = [validation[0], validation[1], *(test[:3])]
    splits = split([*train, *leaks], [*validation, validation[5], *test[5:7]], test)
    parts = [splits.train, splits.search, splits.stopping, splits.gate]
    prompts = [{e.prompt for e in part} for part in parts]
    assert sum(map(len, prompts)) == len(set.union(*prompts))
    assert splits.leaked == len(leaks) + len(test[5:7])
    assert set(splits.train) == set(train)
    if test:
        assert set(splits.gate) == set(test)
    else:
        assert 20 < len(splits.gate) < 60


def test_membership_and_gate_order_do_not_depend_on_the_order_of_the_files() -> None:
    train, validation = some("train", 50), some("validation", 60)
    first = split(train, validation, [])
    second = split(random.Random(1).sample(train, 50), random.Random(2).sample(validation, 60), [])
    assert first.gate == second.gate
    assert first.search == second.search
    assert first.choices == second.choices == (" label0", " label1", " label2", " label3")
    assert [e.prompt for e in first.gate] != sorted(e.prompt for e in first.gate)


def test_too_many_labels_are_refused_with_their_number() -> None:
    with pytest.raises(BadData, match="300"):
        split(some("train", 300, labels=300), some("validation", 50), [])
    assert len(split(some("train", 400, labels=MAX_CHOICES), some("validation", 50), []).choices) == MAX_CHOICES


def test_too_few_examples_for_tuning_are_named() -> None:
    splits = split(some("train", 40), some("validation", 10), some("test", 10))
    with pytest.raises(BadData, match="3 examples are left for search"):
        splits.require_tuning()


def test_without_gate_examples_nothing_is_compared() -> None:
    with pytest.raises(BadData, match="gate"):
        split(some("train", 40), [], [])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: not a JSON object"),
        ('{"prompt": "a"}', "line 2: needs a text under 'completion'; its keys are"),
        ('{"prompt": "a", "completion": 3}', "line 2: needs a text under 'completion'"),
        ('{"prompt": "a", "completion": " "}', "line 2: needs a text under 'completion'"),
    ],
)
def test_malformed_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text(f'{{"prompt": "a", "completion": " b"}}\n{line}\n')
    with pytest.raises(BadData, match=message):
        read_examples(file)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "Grüße", "completion": "x"}'.encode("latin-1"), "train.jsonl line 2: not JSON in UTF-8"),
        (b"[" * 100_000, "train.jsonl line 2: not JSON"),
        (rb'{"prompt": "\ud800", "completion": "x"}', "train.jsonl line 2: 'prompt' holds half a surrogate pair"),
    ],
    ids=["Latin-1", "deeply nested", "half a surrogate pair"],
)
def test_lines_that_are_no_text_are_named(tmp_path: Path, line: bytes, message: str) -> None:
    file = tmp_path / "train.jsonl"
    file.write_bytes(b'{"prompt": "a", "completion": " b"}\r\n' + line + b"\n")
    with pytest.raises(BadData, match=message):
        read_examples(file)
