"""A task whose learning is stopped and goes on is, bit for bit, the task that was never stopped."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from readapt_api.artifacts import ArtifactKind
from readapt_api.contract import Digest
from readapt_api.jobs import JobKind, LearnRequest, LearnTask, TrainRequest
from readapt_runtime.adapt import journal as journals
from readapt_runtime.adapt.base import LoadedBase
from readapt_runtime.adapt.data import Splits
from readapt_runtime.adapt.training import Descent
from readapt_runtime.continual import losses, sequence
from readapt_runtime.continual.blocks import Learned
from readapt_runtime.continual.learning import Course
from readapt_runtime.continual.sequence import Lesson, Task, journal_of, learn_task
from readapt_runtime.lora_format import Shape
from readapt_runtime.progress import JsonLog
from readapt_runtime.store import Store
from readapt_testing.tiny_models import TinyModels

WORK = f"sha256:{'5' * 64}"
STEPS, QUESTIONS = 8, 128
_TRAIN_STEPS = 48


class Killed(BaseException):
    """As a kill would, it passes every handler."""


@dataclass
class School:
    """Learns the second of two tasks, again and again; counts what is done."""

    base: LoadedBase
    shapes: dict[str, Shape]
    tasks: list[Task]
    first: Learned
    monkeypatch: pytest.MonkeyPatch

    def learn(self, store: Store) -> tuple[Learned, Lesson]:
        log = JsonLog(io.StringIO())
        journal = journal_of(store, WORK, self.base, self.first, log)
        return learn_task(self.base, self.shapes, self.first, self.tasks, journal, log)

    def count(self, owner: Any, name: str, dies: int = 0) -> list[str]:
        """The calls from now on; the process ends at the one with number ``dies``."""
        calls: list[str] = []
        inner = getattr(owner, name)

        def call(*arguments: Any) -> Any:
            calls.append(name)
            if len(calls) == dies:
                raise Killed
            return inner(*arguments)

        self.monkeypatch.setattr(owner, name, call)
        return calls


@pytest.fixture
def school(
    base: LoadedBase,
    shapes: dict[str, Shape],
    task_splits: Callable[[range], Splits],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> School:
    monkeypatch.setattr(journals, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(losses, "_PASS_QUESTIONS", 32)
    course = Course(STEPS, 4e-3, 16, seed=0)
    tasks = [Task(name, task_splits(labels), 4, course) for name, labels in (("a", range(4)), ("b", range(4, 8)))]
    log = JsonLog(io.StringIO())
    journal = journal_of(Store(tmp_path / "first"), WORK, base, Learned(), log)
    first, _ = learn_task(base, shapes, Learned(), tasks[:1], journal, log)
    return School(base, shapes, tasks, first, monkeypatch)


DEATHS = {
    "while it asks what was known before": (losses, "choice_scores", 3, QUESTIONS // 32 - 2, STEPS),
    "at the first step": (Descent, "step", 1, 0, STEPS),
    "at a step in the middle": (Descent, "step", 6, 0, STEPS - 5),
    "before it is frozen": (sequence, "freeze", 1, 0, 0),
    "while it asks what is remembered": (sequence, "AnswerStream", 2, 0, 0),
}


@pytest.mark.parametrize(("owner", "name", "at", "asked", "steps"), DEATHS.values(), ids=DEATHS)
def test_killed_it_repeats_what_was_not_saved_and_ends_with_equal_weights(
    school: School, tmp_path: Path, owner: Any, name: str, at: int, asked: int, steps: int
) -> None:
    learned, lesson = school.learn(Store(tmp_path / "undisturbed"))
    store = Store(tmp_path / "killed")
    with school.monkeypatch.context() as patched:
        replace(school, monkeypatch=patched).count(owner, name, dies=at)
        with pytest.raises(Killed):
            school.learn(store)
    stepped, answered = school.count(Descent, "step"), school.count(losses, "choice_scores")
    again, same = school.learn(store)
    assert again.adapter.fingerprint == learned.adapter.fingerprint
    assert again.magnitudes == learned.magnitudes
    assert same.model_copy(update={"seconds": 0}) == lesson.model_copy(update={"seconds": 0})
    assert (len(answered), len(stepped)) == (asked, steps)


def test_what_another_task_before_it_left_is_not_gone_on_with(school: School, tmp_path: Path) -> None:
    school.learn(Store(tmp_path / "store"))
    school.first = school.first.with_magnitudes({k: [2 * x for x in v] for k, v in school.first.magnitudes.items()})
    steps = school.count(Descent, "step")
    school.learn(Store(tmp_path / "store"))
    assert len(steps) == STEPS


@pytest.mark.fault
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize(("death", "code"), [("SIGKILL", -9), ("SIGTERM", 75), ("full", 75)])
@pytest.mark.parametrize("kind", [JobKind.LEARN, JobKind.TRAIN])
def test_a_job_stopped_before_a_durable_write_repeats_one_step_at_most_and_makes_the_same_variant(
    models: TinyModels, task_splits: Callable[[range], Splits], tmp_path: Path, kind: JobKind, death: str, code: int
) -> None:
    store = Store(tmp_path / "store")
    base = store.publish(ArtifactKind.BASE, models.v1).digest
    data = {
        name: _published(store, tmp_path / name, task_splits(labels))
        for name, labels in (("low", range(4)), ("high", range(4, 8)))
    }
    steps = {"learning_rate": "4e-3", "batch_size": 16, "rank": 4}
    request: LearnRequest | TrainRequest = TrainRequest(
        name="low", base=base, data=data["low"], max_steps=_TRAIN_STEPS, **steps
    )
    if kind is JobKind.LEARN:
        wishes = tuple(LearnTask(name=name, data=part, max_steps=STEPS, **steps) for name, part in data.items())
        request = LearnRequest(name="topics", base=base, tasks=wishes, max_rank=32)
    (tmp_path / "request.json").write_text(json.dumps(request.to_wire()))
    (tmp_path / "scratch").mkdir()
    folders = [str(tmp_path / name) for name in ("store", "request.json", "scratch")]
    command = [sys.executable, "-m", "readapt_testing.mortal_job", death, "7", *folders, "0"]
    undisturbed, lives = json.loads(subprocess.run(command, check=True, capture_output=True).stdout).values()
    assert undisturbed["code"] == 0, undisturbed
    assert kind is JobKind.TRAIN or undisturbed["steps"] == 2 * STEPS
    assert sum(name.startswith("progress/") for name in undisturbed["renames"]) >= undisturbed["steps"] > STEPS
    for life in lives:
        stopped, again, at = life["stopped"], life["again"], life["at"]
        assert (stopped["code"], again["code"]) == (code, 0), life
        assert stopped["renames"] == undisturbed["renames"][: at + 1]
        assert again["summary"]["outcomes"][0]["variant"] == undisturbed["summary"]["outcomes"][0]["variant"], life
        assert stopped["steps"] + again["steps"] <= undisturbed["steps"] + 1, life
        assert [name for name in again["leftovers"] if name.startswith("progress/")] == []


def _published(store: Store, folder: Path, splits: Splits) -> Digest:
    folder.mkdir()
    parts = {"train": splits.train, "validation": (*splits.search, *splits.stopping), "test": splits.gate[:40]}
    for part, examples in parts.items():
        rows = [json.dumps({"prompt": e.prompt, "completion": e.completion}) + "\n" for e in examples]
        (folder / f"{part}.jsonl").write_text("".join(rows))
    return store.publish(ArtifactKind.DATA, folder).digest
