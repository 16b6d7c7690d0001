"""`continual.py --quick` on the tiny language: every method over a sequence of tasks, and nothing is computed twice."""

from __future__ import annotations

import json
from pathlib import Path

import continual
import pytest
from answers import one_word_each
from continual import METHODS, QUICK
from sequence import joined, tasks_of

from readapt_testing.tiny_language import tokenizer
from readapt_testing.tiny_models import TinyModels

pytestmark = pytest.mark.usefixtures("single_thread")
CLASSES = 12
WORDS = [f"t{topic}w{number}" for topic in range(4) for number in range(3)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve classes; the glue word of a prompt tells its class, and a class's name is a word of the language."""
    folder = tmp_path_factory.mktemp("classes")
    for part, count in (("train", 24), ("test", 6)):
        rows = [
            {"prompt": f"g{number} t7w{i % 20} g{number} {part}{i}", "completion": f" {word}"}
            for number, word in enumerate(WORDS)
            for i in range(count)
        ]
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_classes_are_dealt_into_tasks_that_share_none(data: Path) -> None:
    tasks = tasks_of(data, tokenizer(), count=3, size=4, per_class=4, seed=0)
    assert sorted(c for task in tasks for c in task.choices) == sorted(f" {word}" for word in WORDS)
    for task in tasks:
        assert {e.completion for e in task.train} == {e.completion for e in task.test} == set(task.choices)
        assert (len(task.train), len(task.test)) == (4 * 24, 4 * 4)
        assert all(e.prompt.split()[0] == f"g{WORDS.index(e.completion.strip())}" for e in task.test)
    assert tasks_of(data, tokenizer(), 3, 4, 4, seed=0) == tasks
    assert [t.choices for t in tasks_of(data, tokenizer(), 3, 4, 4, seed=1)] != [t.choices for t in tasks]
    whole = joined(tasks)
    assert (len(whole.choices), len(whole.train)) == (CLASSES, CLASSES * 24)
    with pytest.raises(ValueError, match="12 classes, 4 tasks of 4 need 16"):
        tasks_of(data, tokenizer(), 4, 4, 4, seed=0)


def test_each_class_is_answered_by_the_rarest_word_of_its_name() -> None:
    words = one_word_each(["t0w0 t0w1", "t0w0 t0w2", "t0w0"], tokenizer())
    assert dict(words) == {"t0w0 t0w1": " t0w1", "t0w0 t0w2": " t0w2", "t0w0": " t0w0"}
    with pytest.raises(ValueError, match="2 classes, and their names have only 1 words"):
        one_word_each(["t0w0", "t0w0 t0w0"], tokenizer())


def test_quick_runs_every_method_once(
    models: TinyModels, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(continual, "fix_threads", lambda: 1)
    out = tmp_path / "runs.jsonl"
    arguments = ["--base", str(models.v1), "--data", str(data), "--out", str(out), "--quick", "--steps", "6"]
    assert continual.main(arguments) == 0
    told = capsys.readouterr().out
    runs = {run["method"]: run for run in map(json.loads, out.read_text().splitlines())}
    assert list(runs) == list(METHODS)
    assert all(run["scale"]["steps"] == 6 and run["scale"]["tasks"] == QUICK.tasks for run in runs.values())
    assert all(0.0 <= run["average"] <= 1.0 for run in runs.values())
    assert runs["joint"]["forgetting"] is None
    assert runs["one per task"]["forgetting"] == 0.0
    assert runs["one per task"]["parameters"] == QUICK.tasks * runs["joint"]["parameters"]
    assert all(f"| {method} |" in told for method in METHODS)
    monkeypatch.setitem(METHODS, "joint", lambda *_: pytest.fail("nothing is left to do"))  # type: ignore[misc]
    assert continual.main(arguments) == 0
    assert capsys.readouterr().out == told
