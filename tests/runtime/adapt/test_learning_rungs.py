"""Refresh and Retrain: where they start, what they learn from, which learning rate they take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from readapt_runtime.adapt import tuning
from readapt_runtime.adapt.base import LoadedBase, load_base
from readapt_runtime.adapt.comparison import AnswerCache, Pair
from readapt_runtime.adapt.data import Example
from readapt_runtime.adapt.errors import Diverged
from readapt_runtime.adapt.factors import attached, side_factors
from readapt_runtime.adapt.forms import Form, GreedyText, LikeliestChoice
from readapt_runtime.adapt.journal import Journal
from readapt_runtime.adapt.refresh import Refresh
from readapt_runtime.adapt.retrain import RATES, Retrain, blank
from readapt_runtime.adapt.teacher import Teacher
from readapt_runtime.adapt.tokens import encode, mean_losses
from readapt_runtime.adapt.tuning import Evaluation, Evenly, Tuning
from readapt_runtime.examples import BadData
from readapt_runtime.lora_format import LoraAdapter, base_shapes, read_adapter
from readapt_runtime.progress import JsonLog
from readapt_runtime.store import Store
from readapt_testing.tiny_llama import write_adapter_folder, write_base

SETTINGS = Tuning(max_steps=4, learning_rate=1e-3, batch_size=4, seed=1, evaluations=3)
PROMPTS = [f"question {i}:" for i in range(20)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rungs")
    write_base(root / "base", seed=5)
    write_adapter_folder(root / "adapter", root / "base", rank=4, seed=6)
    return root


@pytest.fixture(scope="module")
def base(folder: Path) -> LoadedBase:
    return load_base(folder / "base", f"sha256:{'0' * 64}")


@pytest.fixture(scope="module")
def adapter(folder: Path) -> LoraAdapter:
    return read_adapter(folder / "adapter", base_shapes(folder / "base"))


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    with (tmp_path / "log").open("w") as stream:
        return Journal(Store(tmp_path / "store"), f"sha256:{'1' * 64}", {}, JsonLog(stream))


class Grades:
    """Checkpoints by script: (step, adapter) -> evaluation."""

    def __init__(self, grade: Callable[[int, LoraAdapter], Evaluation]) -> None:
        self._grade = grade
        self.seen: list[tuple[int, str]] = []

    def evaluate(self, step: int, adapter: LoraAdapter, before: Sequence[Evaluation]) -> Evaluation:
        self.seen.append((step, adapter.fingerprint))
        return self._grade(step, adapter)


def mark(step: int, score: float, feasible: bool = True, ready: bool = False) -> Evaluation:
    return Evaluation(step, score, None, feasible, ready)


def untimed(_: str) -> AbstractContextManager[None]:
    return nullcontext()


def retrain(base: LoadedBase, adapter: LoraAdapter, journal: Journal, grades: Any) -> Retrain:
    rows = encode(base, [Example(prompt, " yes") for prompt in PROMPTS])
    return Retrain(base, adapter, rows, lambda: (), SETTINGS, lambda _: grades, untimed, journal)


def test_scratch_has_the_old_modules_ranks_and_scales_and_does_nothing(base: LoadedBase, adapter: LoraAdapter) -> None:
    scratch = blank(adapter)
    assert {n: (m.rank, m.scale) for n, m in scratch.modules.items()} == {
        n: (m.rank, m.scale) for n, m in adapter.modules.items()
    }
    rows = encode(base, [Example("Q:", " yes")])
    alone = mean_losses(base, rows)
    with attached(base.model, side_factors(scratch, base)):
        torch.testing.assert_close(mean_losses(base, rows), alone, rtol=0, atol=0)


def test_the_first_rate_that_gets_ready_is_taken(base: LoadedBase, adapter: LoraAdapter, journal: Journal) -> None:
    grades = Grades(lambda step, _: mark(step, step / 4, ready=step >= 2))
    found = retrain(base, adapter, journal, grades).run()
    assert found.evidence["learningRate"] == pytest.approx(1e-3 * RATES[0])
    assert len(found.evidence["runs"]) == 1  # type: ignore[arg-type]
    assert grades.seen[0] == (0, blank(adapter).fingerprint)
    assert found.adapter.fingerprint not in (adapter.fingerprint, blank(adapter).fingerprint)


def test_without_one_all_rates_are_tried_and_the_best_is_taken(
    base: LoadedBase, adapter: LoraAdapter, journal: Journal
) -> None:
    final: list[str] = []

    def grade(step: int, at: LoraAdapter) -> Evaluation:
        if step == 4:
            final.append(at.fingerprint)
        return mark(step, (0.2, 0.6, 0.9)[len(final) - 1] if step == 4 else 0.1, feasible=len(final) < 3)

    found = retrain(base, adapter, journal, Grades(grade)).run()
    assert [run["learningRate"] for run in found.evidence["runs"]] == pytest.approx(  # type: ignore[attr-defined]
        [1e-3 * factor for factor in RATES]
    )
    assert found.parameters == {"learningRate": pytest.approx(1e-3 * RATES[1]), "tuningSteps": 4}
    assert found.adapter.fingerprint == final[1]


@pytest.mark.parametrize(
    ("scores", "steps", "best"),
    [
        ({0: [1, 2, 3, 4], 1: [1, 2, 2, 9], 2: [0, 2, 3, 3]}, [4, 3, 4], 0),
        ({0: [1, 2, 3, 4], 1: [0, 2, 4, 5], 2: [0, 4, 3, 9]}, [4, 4, 3], 1),
        ({0: [1, 1, 1, 1], 1: [0, 0, 0, 0], 2: [0, 1, 1, 2]}, [4, 2, 4], 2),
    ],
    ids=["behind the first", "behind the second", "as good is not behind"],
)
def test_a_rate_that_falls_behind_the_best_before_it_is_given_up(
    base: LoadedBase,
    adapter: LoraAdapter,
    journal: Journal,
    scores: dict[int, list[float]],
    steps: list[int],
    best: int,
) -> None:
    """Judged from the second of four steps on."""
    number = -1

    def grade(step: int, _: LoraAdapter) -> Evaluation:
        nonlocal number
        number += step == 0
        return mark(step, 0.0 if step == 0 else scores[number][step - 1])

    settings = Evenly(max_steps=4, learning_rate=1e-3, batch_size=4, seed=1)
    found = replace(retrain(base, adapter, journal, Grades(grade)), settings=settings).run()
    runs = found.evidence["runs"]
    assert [len(run["trainLosses"]) for run in runs] == steps  # type: ignore[attr-defined]
    assert found.parameters["learningRate"] == pytest.approx(1e-3 * RATES[best])


def test_where_the_new_base_alone_is_good_enough_what_was_trained_is_taken(
    base: LoadedBase, adapter: LoraAdapter, journal: Journal
) -> None:
    found = retrain(base, adapter, journal, Grades(lambda step, _: mark(step, 0.9 - step / 100, ready=True))).run()
    assert found.adapter.fingerprint != blank(adapter).fingerprint
    assert found.parameters["tuningSteps"] != 0
    assert len(found.evidence["runs"]) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize(("diverging", "left"), [({0}, [1, 2]), ({0, 2}, [1]), ({1}, [0, 2])])
def test_a_rate_that_diverges_counts_for_nothing(
    base: LoadedBase,
    adapter: LoraAdapter,
    journal: Journal,
    monkeypatch: pytest.MonkeyPatch,
    diverging: set[int],
    left: list[int],
) -> None:
    diverge_at(monkeypatch, diverging)
    found = retrain(base, adapter, journal, Grades(lambda step, _: mark(step, 0.1))).run()
    rates = [run["learningRate"] for run in found.evidence["runs"]]  # type: ignore[attr-defined]
    assert rates == pytest.approx([1e-3 * RATES[n] for n in left])


def test_when_every_rate_diverges_a_person_must_act(
    base: LoadedBase, adapter: LoraAdapter, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    diverge_at(monkeypatch, {0, 1, 2})
    with pytest.raises(Diverged, match="rate 16"):
        retrain(base, adapter, journal, Grades(lambda step, _: mark(step, 0.1))).run()


def diverge_at(monkeypatch: pytest.MonkeyPatch, numbers: set[int]) -> None:
    rates = {1e-3 * RATES[n]: f"rate {RATES[n]:g}" for n in numbers}

    def tune(*arguments: Any) -> Any:
        if arguments[4].learning_rate in rates:
            raise Diverged(rates[arguments[4].learning_rate])
        return tuning.tune(*arguments)

    monkeypatch.setattr("readapt_runtime.adapt.retrain.tune", tune)


class Script:
    """A form of answers by script."""

    name = "script"

    def __init__(self, answers: dict[str, str]) -> None:
        self._answers = answers

    def ask(self, base: LoadedBase, examples: Sequence[Example]) -> list[str]:
        return [self._answers[e.prompt] for e in examples]


def teacher(base: LoadedBase, adapter: LoraAdapter, form: Form, store: Store) -> Teacher:
    digest = f"sha256:{'2' * 64}"
    return Teacher(Pair(base, adapter), form, lambda part: AnswerCache.of(store, digest, base, digest, part, form))


def test_the_teacher_answers_as_its_pair_and_is_asked_once(
    base: LoadedBase, adapter: LoraAdapter, tmp_path: Path
) -> None:
    form = LikeliestChoice((" yes", " no", " maybe"))
    taught = teacher(base, adapter, form, Store(tmp_path)).teach("part", PROMPTS)
    expected = Pair(base, adapter).answer(form, [Example(prompt, "") for prompt in PROMPTS])
    assert [(e.prompt, e.completion) for e in taught] == list(zip(PROMPTS, expected, strict=True))
    assert teacher(base, adapter, form, Store(tmp_path)).cache("part").load() == tuple(expected)


def test_empty_answers_and_answers_without_an_end_teach_nothing(
    base: LoadedBase, adapter: LoraAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = {"a": " yes", "b": " ", "c": "", "d": " " + "x" * 20}
    form = GreedyText(12)
    monkeypatch.setattr(GreedyText, "ask", lambda _, __, examples: [answers[e.prompt] for e in examples])
    taught = teacher(base, adapter, form, Store(tmp_path)).teach("part", list(answers))
    assert taught == (Example("a", " yes"),)


def refresh(
    base: LoadedBase, adapter: LoraAdapter, tmp_path: Path, journal: Journal, grades: Any, prompts: Sequence[str]
) -> Refresh:
    asked = teacher(base, adapter, Script(dict.fromkeys(prompts, " yes")), Store(tmp_path / "store"))
    starts = {"Copied": adapter, "ReLoRA": blank(adapter)}
    return Refresh(base, starts, asked, prompts, lambda: (), SETTINGS, grades, untimed, journal)


@pytest.mark.parametrize(("relora", "expected"), [(0.4, "Copied"), (0.3, "Copied"), (0.5, "ReLoRA")])
def test_refresh_starts_from_the_better_of_copy_and_relora(
    base: LoadedBase, adapter: LoraAdapter, tmp_path: Path, journal: Journal, relora: float, expected: str
) -> None:
    grades = Grades(lambda step, at: mark(step, 0.6 if step else 0.4 if at is adapter else relora))
    found = refresh(base, adapter, tmp_path, journal, grades, PROMPTS).run()
    assert (found.parameters["start"], found.parameters["answers"]) == (expected, 16)
    assert found.parameters["tuningSteps"] == 2
    assert found.adapter.fingerprint in {fingerprint for step, fingerprint in grades.seen if step == 2}


def test_a_start_that_took_the_update_away_is_not_the_better_one(
    base: LoadedBase, adapter: LoraAdapter, tmp_path: Path, journal: Journal
) -> None:
    grades = Grades(lambda step, at: mark(step, 0.4 if at is adapter else 0.9, feasible=at is adapter))
    assert refresh(base, adapter, tmp_path, journal, grades, PROMPTS).run().parameters["start"] == "Copied"


def test_a_teacher_with_next_to_no_answers_is_refused(
    base: LoadedBase, adapter: LoraAdapter, tmp_path: Path, journal: Journal
) -> None:
    grades = Grades(lambda step, _: mark(step, 0.4))
    with pytest.raises(BadData, match="an answer to 7 of 7 prompts; 8 are needed"):
        refresh(base, adapter, tmp_path, journal, grades, PROMPTS[:7]).run()
