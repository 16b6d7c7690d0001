"""A tuning that is stopped and goes on is, bit for bit, the tuning that was never stopped."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch

from readapt_runtime.adapt.base import LoadedBase, load_base
from readapt_runtime.adapt.data import Example
from readapt_runtime.adapt.journal import Journal
from readapt_runtime.adapt.retention import Retention, sample
from readapt_runtime.adapt.tokens import encode
from readapt_runtime.adapt.training import Training
from readapt_runtime.adapt.tuning import Evaluation, Lessons, Tuned, Tuning, tune
from readapt_runtime.lora_format import LoraAdapter, LoraModule, linear_shapes, read_adapter
from readapt_runtime.progress import JsonLog
from readapt_runtime.store import Store
from readapt_testing.tiny_llama import write_adapter_folder, write_base

SETTINGS = Tuning(max_steps=12, learning_rate=1e-2, batch_size=4, seed=3, evaluations=4, patience=3)
FIRST = Evaluation(0, 0.5, Retention(0.7, 0.01), feasible=True, ready=False)
ITEM = "sha256:" + "7" * 64
BEST_AT = {"the start": 0, "an early step": 3, "the last step": 12}


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> LoadedBase:
    root = tmp_path_factory.mktemp("resumed")
    write_base(root / "base", seed=6)
    write_adapter_folder(root / "adapter", root / "base", rank=4, seed=2)
    return load_base(root / "base", f"sha256:{'0' * 64}")


@pytest.fixture(scope="module")
def start(base: LoadedBase) -> LoraAdapter:
    """With columns of B that lie apart in memory, as a fold leaves them."""
    folder = Path(base.model.config._name_or_path).parent / "adapter"
    read = read_adapter(folder, linear_shapes(base.model.config.to_dict()))
    modules = read.modules.values()
    return LoraAdapter({m.name: LoraModule(m.name, m.a, m.b.T.contiguous().T, m.scale) for m in modules})


@pytest.fixture(scope="module")
def lessons(base: LoadedBase) -> Lessons:
    examples = [Example(f"Query {i}:" + " why" * (i % 5), f" {'yes' if i % 2 else 'no'}") for i in range(22)]
    return Lessons(encode(base, examples), sample(base, 5, 8, seed=1).tolist())


class Course:
    """Tunings that are best at a given step, stopped after so many saves; counts the steps taken."""

    def __init__(self, base: LoadedBase, start: LoraAdapter, lessons: Lessons, monkeypatch: pytest.MonkeyPatch) -> None:
        self.base, self.start, self.lessons = base, start, lessons
        self.steps = 0
        step = Training.step

        def counted(training: Training, loss: torch.Tensor) -> None:
            self.steps += 1
            step(training, loss)

        monkeypatch.setattr(Training, "step", counted)

    def run(self, journal: Journal | None, best: int) -> Tuned:
        def evaluate(step: int, adapter: LoraAdapter, before: Sequence[Evaluation]) -> Evaluation:
            assert [e.step for e in before] == list(range(0, step, 3))
            score = 0.4 if best == 0 else 0.9 - abs(step - best) / 100
            return Evaluation(step, score, Retention(0.1 * step, 1e-3), feasible=True, ready=False)

        return tune(self.base, self.start, FIRST, self.lessons, SETTINGS, evaluate, journal)


@pytest.fixture
def course(base: LoadedBase, start: LoraAdapter, lessons: Lessons, monkeypatch: pytest.MonkeyPatch) -> Course:
    return Course(base, start, lessons, monkeypatch)


class Mortal(Journal):
    """Ends the process right after it has saved so many times."""

    saves_left = -1

    def save(self, name: str, document: object, tensors: Mapping[str, torch.Tensor]) -> None:
        super().save(name, document, tensors)
        self.saves_left -= 1
        if self.saves_left == 0:
            raise Killed


def journal_in(folder: Path, clock: Callable[[], float] = lambda: 0.0) -> Mortal:
    return Mortal(Store(folder), ITEM, {}, JsonLog(io.StringIO()), clock)


def assert_same(found: Tuned, expected: Tuned) -> None:
    assert found.curve == expected.curve
    assert found.best == expected.best
    assert found.train_losses == expected.train_losses
    assert found.adapter.fingerprint == expected.adapter.fingerprint


@pytest.mark.parametrize("best", BEST_AT.values(), ids=BEST_AT.keys())
def test_stopped_after_every_evaluation_it_ends_with_the_same_bytes_and_no_step_twice(
    course: Course, tmp_path: Path, best: int
) -> None:
    expected = course.run(None, best)
    taken = course.steps
    deaths = 0
    while True:
        journal = journal_in(tmp_path)
        journal.saves_left = 1
        try:
            found = course.run(journal, best)
        except Killed:
            deaths += 1
            continue
        break
    assert deaths == len(expected.curve) - 1
    assert course.steps == 2 * taken
    assert_same(found, expected)


def test_stopped_between_evaluations_it_ends_with_the_same_bytes_and_no_step_twice(
    course: Course, tmp_path: Path
) -> None:
    """A clock on which half a minute passes at every look: every step is saved."""
    expected, now = course.run(None, 12), 0.0

    def clock() -> float:
        nonlocal now
        now += 31.0
        return now

    taken = course.steps
    for saves in (1, 1, 3, 2):
        journal = journal_in(tmp_path, clock)
        journal.saves_left = saves
        with pytest.raises(Killed):
            course.run(journal, 12)
    found = course.run(journal_in(tmp_path, clock), 12)
    assert course.steps == 2 * taken
    assert_same(found, expected)


def test_another_start_other_lessons_or_settings_do_not_go_on_from_it(course: Course, tmp_path: Path) -> None:
    course.run(journal_in(tmp_path), 12)
    assert course.steps == 12
    scaled = {n: LoraModule(n, m.a, 1.5 * m.b, m.scale) for n, m in course.start.modules.items()}
    fewer = Lessons(course.lessons.examples[:20], course.lessons.replay)
    other = Course.__new__(Course)
    for start, lessons in ((LoraAdapter(scaled), course.lessons), (course.start, fewer)):
        other.base, other.start, other.lessons = course.base, start, lessons
        before = course.steps
        other.run(journal_in(tmp_path), 12)
        assert course.steps == before + 12
    course.run(journal_in(tmp_path), 12)
    assert course.steps == 36
