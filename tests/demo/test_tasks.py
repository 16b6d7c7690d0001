"""The demo's generated tasks: splits that share no prompt, words that training never shows, one answer each."""

from __future__ import annotations

import pytest

from readapt_demo.tasks import PARCELS, SHIFTS, Task, generate

SIZES = {"train": 300, "validation": 100, "test": 600}


def facts(task: Task, prompt: str) -> tuple[str, str]:
    """The groups of the two words that a prompt mentions."""
    rest = prompt.split(":", 1)[1]
    words = set(rest.replace(",", " ").replace("\n", " ").split())
    first, second = (
        [group for group, members in groups.items() if words & set(members.split())]
        for groups in (task.first, task.second)
    )
    assert (len(first), len(second)) == (1, 1), prompt
    return first[0], second[0]


@pytest.mark.parametrize("task", [PARCELS, SHIFTS], ids=lambda task: task.name)
def test_splits_share_no_prompt_and_every_answer_follows_from_it(task: Task) -> None:
    splits = generate(task, *SIZES.values())
    assert {name: len(rows) for name, rows in splits.items()} == SIZES
    prompts = [row["prompt"] for rows in splits.values() for row in rows]
    assert len(set(prompts)) == len(prompts)
    assert len(task.labels) == len(set(task.labels.values())) == 24
    for row in splits["test"]:
        assert row["completion"] == f" {task.labels[facts(task, row['prompt'])]}"


@pytest.mark.parametrize("task", [PARCELS, SHIFTS], ids=lambda task: task.name)
def test_a_good_part_of_the_test_has_words_that_training_never_showed(task: Task) -> None:
    splits = generate(task, 2000, 100, 600)
    taught = {word for row in splits["train"] for word in row["prompt"].replace(",", " ").split()}
    new = [row for row in splits["test"] if not set(row["prompt"].replace(",", " ").split()) <= taught]
    assert 0.3 < len(new) / len(splits["test"]) < 0.6


def test_equal_seeds_give_equal_tasks() -> None:
    assert generate(PARCELS, 20, 5, 5) == generate(PARCELS, 20, 5, 5) != generate(PARCELS, 20, 5, 5, seed=1)
