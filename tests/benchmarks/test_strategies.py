"""All ways of the study over a tiny base move: equal beginnings, one meaning of score, nothing found of another's."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from cases import Plan, Study
from strategies import WAYS, Contest, Run, Trial, timed_once
from study_bases import Shelf
from study_rows import Row, read_rows
from study_tables import tables

from readapt_api.artifacts import Origin
from readapt_runtime.adapt.comparison import AnswerStream, Pair
from readapt_runtime.adapt.data import Example, Splits, read_splits
from readapt_runtime.adapt.item import Move
from readapt_runtime.adapt.measure import Measure, mean
from readapt_runtime.lora_format import base_shapes, read_adapter
from readapt_runtime.progress import JsonLog
from readapt_testing.tiny_models import TinyModels, tiny_models

pytestmark = pytest.mark.usefixtures("single_thread")
QUIET = JsonLog(io.StringIO())
STEPS = 16
whole = pytest.mark.fault
"""All ways, half a minute."""


@pytest.fixture(scope="module")
def case(models: TinyModels, move: Move) -> Trial:
    adapter = read_adapter(models.adapter, base_shapes(models.v1))
    splits = read_splits(models.data("adapter", "train").parent)
    spare = splits.gate[700:800]
    splits = replace(
        splits,
        train=splits.train[:200],
        search=splits.search[:24],
        stopping=splits.stopping[:64],
        gate=splits.gate[:700],
    )
    return Trial("tiny", move, adapter, splits, seed=0, margin=0.1, spare=spare, max_steps=STEPS)


@pytest.fixture(scope="module")
def contest(case: Trial, tmp_path_factory: pytest.TempPathFactory) -> Contest:
    root = tmp_path_factory.mktemp("contest")
    return Contest(case, root / "pair", root / "case", QUIET)


@pytest.fixture(scope="module")
def runs(contest: Contest) -> Mapping[str, Run]:
    return {name: way(contest) for name, way in WAYS.items()}


def scored(case: Trial, base: Any) -> float:
    """Of the old adapter on all examples of the gate."""
    form = Measure.of(case.metric, case.splits, case.move.old)
    answers = AnswerStream(Pair(base, case.adapter), case.splits.gate, form.form).all()
    return mean(form.scores(case.splits.gate, answers, answers))


@whole
def test_what_did_not_pass_leaves_copy_to_serve(case: Trial, contest: Contest, runs: Mapping[str, Run]) -> None:
    """Whichever way did not come through: the score, what it ends with and what it keeps are Copy's."""
    assert contest.shared.old_score == pytest.approx(scored(case, case.move.old))
    copied = runs["Copy"]
    assert copied.score == pytest.approx(scored(case, case.move.new))
    assert copied.score < contest.shared.old_score - case.margin
    missed = [run for run in runs.values() if not run.passed]
    assert copied in missed
    assert runs["scratch"] in missed
    for run in missed:
        assert (run.score, run.end, run.retention, run.unseen) == (copied.score, copied.end, copied.retention, None)


@whole
def test_relora_goes_from_copy_and_ours_through_the_ladder(runs: Mapping[str, Run]) -> None:
    relora, ours = runs["ReLoRA"], runs["ours"]
    assert "transport" not in relora.parts
    assert "search" in relora.parts
    assert {"gate Copied", "transport", "gate ReLoRA"} <= ours.parts.keys()
    assert relora.begin == ours.begin == runs["Copy"].begin
    assert relora.origin in (Origin.RELORA.value, Origin.COPIED.value)


@whole
def test_best_checkpoints_are_told_with_their_seconds(runs: Mapping[str, Run]) -> None:
    tuned, scratch = runs["Copy+tuning"], runs["scratch"]
    for run in (tuned, scratch):
        seconds = [second for second, _ in run.tested]
        assert seconds[0] == 0.0
        assert seconds == sorted(seconds)
        assert seconds[-1] <= run.seconds
    assert tuned.tested[0][1] == runs["Copy"].score
    assert scratch.tested[0][1] < 0.3
    assert not runs["ours"].tested


@whole
def test_passed_variants_are_asked_what_their_gate_had_not_asked(case: Trial, runs: Mapping[str, Run]) -> None:
    passed = [run for run in runs.values() if run.passed]
    assert passed
    for run in passed:
        assert run.unseen is not None
        assert len(case.spare) <= run.unseen.examples < len(case.spare) + len(case.splits.gate)
        assert abs(run.unseen.gain) < 0.3


@whole
def test_the_rows_of_a_contest_fill_every_table(contest: Contest, runs: Mapping[str, Run]) -> None:
    shared = {**contest.shared.seconds, "drift": 0.1}
    facts = {"old_score": contest.shared.old_score, "of_copy": contest.of_copy, "shared": shared}
    named = {"move": "tiny", "task": "topics", "size": 200, "seed": 0}
    rows = [Row(way=way, **named, **facts, **asdict(run)) for way, run in runs.items()]  # type: ignore[arg-type]
    text = tables(rows)
    assert all(f"| tiny | topics | 200 | {way} |" in text for way in WAYS)
    assert "score of ours less Copy+tuning at equal compute, alone" in text


@whole
def test_no_way_finds_what_another_has_left(contest: Contest) -> None:
    assert [path.name for path in (contest._folder).iterdir()] == ["shared"]


def test_copy_alone_measures_no_retention(case: Trial, tmp_path: Path) -> None:
    alone = Contest(replace(case, spare=()), tmp_path / "pair", tmp_path / "case", QUIET, copy_alone=True)
    found = alone.copy()
    assert (found.retention, found.begin, alone.of_copy) == (None, None, None)
    assert "yardstick" not in alone.shared.seconds
    with pytest.raises(ValueError, match="needs a contest of all ways"):
        alone.scratch()


class TinyShelf(Shelf):
    """One tiny move in place of the study's."""

    def __init__(self, case: Trial, models: TinyModels) -> None:
        self._case = case
        self._models = models

    def v1(self) -> Path:
        return self._models.v1

    def adapter(self, task: str, seed: int, steps: int = 0) -> Path:
        return self._models.adapter

    def task(self, name: str, train: int, seed: int) -> Splits:
        return replace(self._case.splits, gate=self._case.splits.gate[:120])

    def spare(self, name: str, splits: Splits) -> tuple[Example, ...]:
        return ()

    def load(self, name: str) -> Move:
        return self._case.move


def test_a_study_of_generated_answers_writes_a_row_per_case_and_computes_none_twice(
    case: Trial, fixture_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(["harder@1"], ["topics-spelled"], [200], seeds=1, ways=("Copy",))
    study = Study(plan, TinyShelf(case, tiny_models(fixture_cache)), tmp_path, QUIET)
    study.run()
    (found,) = read_rows([tmp_path])
    assert (found.move, found.task, found.way, found.metric) == ("harder@1", "topics-spelled", "Copy", "ExactMatch")
    assert found.old_score > found.score + case.margin
    assert "drift" not in found.shared
    monkeypatch.setattr(Contest, "copy", lambda _: pytest.fail("nothing is left to do"))
    study.run()


def test_seconds_are_those_of_the_first_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([100.0, 107.5, 200.0])
    monkeypatch.setattr("time.process_time", lambda: next(now))
    assert timed_once(tmp_path / "x.s", lambda: "made") == ("made", 7.5)
    assert timed_once(tmp_path / "x.s", lambda: "found") == ("found", 7.5)
