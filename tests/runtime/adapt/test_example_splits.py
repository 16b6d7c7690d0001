"""Who may look at which examples."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from readapt_api.adaptation import Metric
from readapt_runtime.adapt.data import MAX_CHOICES, Example, read_examples, read_inputs, read_splits, split, union
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


@pytest.mark.parametrize("given", ["test file", "validation only"])
def test_a_prompt_counts_once_in_the_gate_however_often_it_stands_there(given: str) -> None:
    """A copy tells nothing new, and tests that took it for evidence would let pass what loses too much."""
    once = some("asked", 60)
    copies = [*once, *once[:40], *(Example(e.prompt, " label3") for e in once[:30])]
    validation, test = (some("validation", 60), copies) if given == "test file" else (copies, [])
    splits = split(some("train", 50), validation, test)
    prompts = [e.prompt for e in splits.gate]
    assert len(set(prompts)) == len(prompts) > 20
    assert set(prompts) <= {e.prompt for e in once}
    assert splits.repeated == sum(e.prompt in prompts for e in copies) - len(prompts) > 0
    shuffled = random.Random(3)
    again = split(some("train", 50), validation, shuffled.sample(test, len(test)))
    assert again.gate == splits.gate


def test_tasks_together_tell_what_was_dropped_from_each() -> None:
    tasks = []
    for name in ("a", "b"):
        test = some(f"{name} test", 20)
        train = [*some(f"{name} train", 30), *test[:3]]
        tasks.append(split(train, some(f"{name} validation", 40), [*test, *test]))
    assert [(part.leaked, part.repeated) for part in tasks] == [(3, 20)] * 2
    assert (union(tasks).leaked, union(tasks).repeated) == (6, 40)


def test_labels_of_repeated_prompts_are_held_against_those_of_train_too() -> None:
    with pytest.raises(BadData, match="foreign"):
        split(some("train", 50), some("validation", 60), [*some("t", 9), Example("t 1", " foreign")])


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


LABELS_ELSEWHERE = [metric for metric in Metric if metric is not Metric.ACCURACY]


@pytest.mark.parametrize("metric", LABELS_ELSEWHERE)
def test_free_text_is_no_matter_to_the_other_metrics(metric: Metric) -> None:
    splits = split(some("train", 300, labels=300), some("validation", 50, labels=50), [], metric=metric)
    assert (splits.choices, splits.has_labels) == ((), False)
    assert split(some("train", 30), some("validation", 50), [], metric=metric).has_labels


@pytest.mark.parametrize("where", ["validation", "test"])
def test_labels_outside_the_label_set_are_refused(where: str) -> None:
    data = {"validation": some("validation", 40), "test": some("test", 40)}
    data[where].append(Example("odd", " lable3"))
    with pytest.raises(BadData, match=r"1 completions of validation and test are none of train's 4 labels.*' lable3'"):
        split(some("train", 40), data["validation"], data["test"])


def test_inputs_alone_are_divided_among_all_parts() -> None:
    prompts = [f"input {i}" for i in range(400)]
    splits = split([], [], [], [*prompts, *prompts[:7]], Metric.AGREEMENT)
    parts = (splits.gate, splits.search, splits.stopping, splits.train)
    assert sum(map(len, parts)) == len({e.prompt for part in parts for e in part}) == 400
    assert 120 < len(splits.gate) < 200
    assert 120 < len(splits.train) < 200
    assert (splits.labelled, splits.leaked, splits.inputs) == (False, 7, ())
    assert {e.completion for part in parts for e in part} == {""}


def test_inputs_beside_examples_lose_what_is_judged_by() -> None:
    validation = some("validation", 40)
    splits = split(some("train", 40), validation, [], [e.prompt for e in validation] + ["new", "new"])
    assert splits.inputs == ("new",)
    assert splits.leaked == 41


@pytest.mark.parametrize("metric", [metric for metric in Metric if metric.needs_labels])
def test_inputs_alone_cannot_be_judged_by_labels(metric: Metric) -> None:
    with pytest.raises(BadData, match=f"{metric} needs train and validation"):
        split([], [], [], ["a", "b"], metric)


def test_nothing_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="no examples: give train and validation, or inputs"):
        read_splits(tmp_path, Metric.AGREEMENT)


def test_inputs_are_read_whatever_else_their_lines_hold(tmp_path: Path) -> None:
    file = tmp_path / "inputs.jsonl"
    file.write_text('{"prompt": "a", "completion": 3}\n\n{"prompt": "b"}\n')
    assert read_inputs(file) == ("a", "b")
    file.write_text('{"prompt": "a"}\n{"text": "b"}\n')
    with pytest.raises(BadData, match=r"inputs\.jsonl line 2: needs a text under 'prompt'"):
        read_inputs(file)


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
