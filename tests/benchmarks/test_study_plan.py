"""The study in one command: what runs, what is shared, what goes on after a stop; and what its shelf hands out."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import ablations
import cases
import continual
import fleet
import predictor
import pytest
import study_bases
from laws import Copied
from strategies import WAYS
from study import Plan, Runner, Step, report
from study_bases import MOVES, SPELLED, Shelf, metric_of, move_of

from readapt_api.adaptation import Metric
from readapt_runtime.drift.overlap import Overlap


def plan(tmp_path: Path, **more: object) -> Plan:
    facts = {"out": tmp_path, "data": tmp_path / "data", "small": False, "processes": 2, **more}
    return Plan(**facts)  # type: ignore[arg-type]


def named(steps: Sequence[Step]) -> list[str]:
    return [step.name for step in steps]


def test_the_whole_study_has_every_part(tmp_path: Path) -> None:
    found = plan(tmp_path)
    assert named(found.work()) == [
        *("cases-1", "cases-2", "fleet", "continual", "ablations-harder", "ablations-strong", "moves-1", "moves-2")
    ]
    assert named(found.tables()) == ["cases", "predictor"]
    assert "continual" not in named(plan(tmp_path, data=None).work())


@pytest.mark.parametrize("small", [False, True], ids=["full", "small"])
@pytest.mark.parametrize("data", [False, True], ids=["generated", "real"])
def test_every_script_takes_the_arguments_that_it_is_given(tmp_path: Path, small: bool, data: bool) -> None:
    parsers = {
        "cases.py": cases._parser(),
        "ablations.py": ablations._parser(),
        "fleet.py": fleet._parser(),
        "continual.py": continual._parser(),
        "predictor.py": predictor._parser(),
    }
    found = plan(tmp_path, small=small, data=tmp_path if data else None, move_seeds=2)
    for step in [*found.work(), *found.tables()]:
        parsers[step.script].parse_args(step.arguments)


def test_the_predictor_gets_at_least_three_moves_even_from_the_small_study(tmp_path: Path) -> None:
    """Two to fit a law to and one to try it on."""
    step = next(step for step in plan(tmp_path, small=True).work() if step.name == "moves-1")
    moves = cases._parser().parse_args(step.arguments).moves
    assert len({"harder", *moves}) == 3
    assert set(moves) <= set(MOVES)


def test_parts_share_their_cases_and_moves_have_seeds(tmp_path: Path) -> None:
    first, second = (cases._parser().parse_args(step.arguments) for step in plan(tmp_path, move_seeds=2).work()[:2])
    assert (first.part, second.part, first.out) == ((1, 2), (2, 2), second.out)
    assert first.moves == ["mild", "mild@1", "strong", "strong@1", "harder", "harder@1"]
    assert first.ways == list(WAYS)
    assert "ReLoRA" in first.ways


def test_what_fails_does_not_stop_the_others_and_what_was_printed_is_in_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cases", "fleet", "ablations"):
        (tmp_path / f"{name}.py").write_text(f"import sys; print('| {name} |'); sys.stderr.write('busy'); ")
    (tmp_path / "predictor.py").write_text("import sys; sys.exit('too few moves')")
    monkeypatch.setattr("study._HERE", tmp_path)
    said: list[str] = []
    found = plan(tmp_path, data=None)
    runner = Runner(tmp_path, said.append)
    assert runner.run(found.work(), 2) == []
    (failed,) = runner.run(found.tables(), 1)
    assert (failed.name, failed.command[0]) == ("predictor", sys.executable)
    assert "too few moves" in (tmp_path / "predictor.log").read_text()
    text = report(found, runner)
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        *("## cases", "## fleet", "## ablations-harder", "## ablations-strong")
    ]
    assert sum("begins" in line for line in said) == sum("after" in line for line in said) == 9


def test_moves_are_named_with_their_seed() -> None:
    assert move_of("harder") == (MOVES["harder"], 0)
    assert move_of("harder@2") == (MOVES["harder"], 2)
    with pytest.raises(ValueError, match="sideways: there are mild"):
        move_of("sideways")
    nothing = Overlap(1.0, 0.25, 0.1, 0.0, {})
    assert predictor.kind(Copied("harder@2", "intents", 0, 1.0, nothing, 0.2, 0.3, 0.9, 0.8)) == "harder"


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    monkeypatch.setattr(study_bases, "cache_root", lambda: tmp_path)
    return Shelf(None, lambda text: None)


def test_a_spelled_task_is_generated_and_asks_the_same_of_the_same_prompts(shelf: Shelf) -> None:
    assert (metric_of("parcels"), metric_of(f"parcels{SPELLED}")) == (Metric.ACCURACY, Metric.EXACT_MATCH)
    plain, spelled = (shelf.examples(name, 200, seed=0) for name in ("parcels", f"parcels{SPELLED}"))
    answers: dict[str, set[str]] = {}
    for part in ("train", "validation", "test"):
        assert [e.prompt for e in plain[part]] == [e.prompt for e in spelled[part]]
        for one, other in zip(plain[part], spelled[part], strict=True):
            answers.setdefault(one.completion, set()).add(other.completion)
    assert len(answers) == 24
    assert all(len(each) == 1 and len(next(iter(each)).split()) == 2 for each in answers.values())
    assert len(shelf.task(f"parcels{SPELLED}", 200, seed=0).gate) == 800


def test_spare_examples_are_in_no_split(shelf: Shelf) -> None:
    splits = shelf.task("shifts", 200, seed=1)
    spare = shelf.spare("shifts", splits)
    assert len(spare) == 800
    taken = {e.prompt for part in (splits.train, splits.search, splits.stopping, splits.gate) for e in part}
    assert not taken & {e.prompt for e in spare}


def test_intents_spelled_keep_their_names(tmp_path: Path) -> None:
    rows = [{"prompt": f"query {i}", "completion": f" card arrival {i % 25}"} for i in range(100)]
    for part in ("train", "validation", "test"):
        (tmp_path / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    out.mkdir()
    study_bases.cut_intents(tmp_path, out, None, skipped=3)
    kept = [json.loads(line)["completion"] for line in (out / "test.jsonl").read_text().splitlines()]
    assert len(set(kept)) == 20
    assert all(answer.startswith(" card arrival ") for answer in kept)
