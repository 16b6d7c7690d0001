"""Laws for what Copy loses are fitted and tried as they say; the expected numbers are computed by hand."""

from __future__ import annotations

import pytest
from laws import FEATURES, Copied, left_out, slope
from predictor import copies, report
from stopwatch import Stopwatch
from study_rows import Row

from readapt_runtime.drift.overlap import Overlap


def copied(move: str, size: float, lost: float, seed: int = 0, task: str = "intents") -> Copied:
    return Copied(
        move, task, seed, lost, Overlap(size, 0.25, 0.1, 0.0, {}), 0.2, 0.2 + lost / 10, 0.9, 0.9 - lost / 100
    )


def size(case: Copied) -> float:
    return case.overlap.size


CASES = [copied("mild", 1.0, 2.0), copied("strong", 2.0, 3.0), copied("harder", 4.0, 10.0)]


def test_slope_is_of_least_squares_through_the_origin() -> None:
    assert slope(CASES, size) == pytest.approx((1 * 2 + 2 * 3 + 4 * 10) / (1 + 4 + 16))
    assert slope([copied("none", 0.0, 1.0)], size) == 0.0


def test_a_move_is_predicted_by_the_law_of_the_others() -> None:
    """Slope without harder 8 / 5 = 1.6, so 6.4 of 10; without mild 46 / 20, so 2.3 of 2; without strong 42 / 17."""
    found = {held.group: held for held in left_out(CASES, size, lambda c: c.move)}
    assert found["harder"].error == pytest.approx(3.6)
    assert found["mild"].error == pytest.approx(0.3)
    assert found["strong"].error == pytest.approx(2 * 42 / 17 - 3)
    # More than three points: said of harder (6.4 of 10) rightly, of strong (4.9 of 3.0) wrongly.
    assert [held.right for held in found.values()] == [1.0, 0.0, 1.0]


def test_all_cases_of_the_left_out_move_are_left_out() -> None:
    cases = [copied("mild", 1.0, 1.0, seed) for seed in range(2)] + [copied("harder", 1.0, 9.0, s) for s in range(2)]
    assert [held.error for held in left_out(cases, size, lambda c: c.move)] == [8.0, 8.0]


def test_what_a_law_expects_is_within_what_can_be_lost() -> None:
    """A slope of 50 makes 200 points of size 4, and less than none of a negative size: 100 and 0."""
    cases = [copied("mild", 1.0, 50.0), copied("harder", 4.0, 90.0), copied("back", -1.0, 0.0)]
    found = {held.group: held.error for held in left_out(cases, size, lambda c: c.move)}
    assert found["back"] == 0.0
    assert left_out(cases[:2], size, lambda c: c.move)[1].error == pytest.approx(10.0)


def test_one_move_is_refused() -> None:
    with pytest.raises(ValueError, match="one group alone, mild"):
        left_out(CASES[:1], size, lambda c: c.move)


def test_the_report_has_every_case_and_every_law() -> None:
    text = report([*CASES, copied("harder", 4.0, 12.0, seed=1)])
    assert "| harder | intents | 2 | 11.0 ± 12.7 | 4.000 |" in text
    assert all(f"| {name} |" in text for name in FEATURES)


def test_copy_counts_once_however_many_examples_there_are_to_repair_with() -> None:
    def row(way: str, examples: int, seed: int) -> Row:
        return Row("mild", "intents", examples, seed, way, 0.9, None, {}, 1.0, True, 0.8, None, [], 0, way, {})

    rows = [row("Copy", 200, 0), row("Copy", 1000, 0), row("ours", 200, 0), row("Copy", 200, 1)]
    assert [(r.way, r.seed) for r in copies(rows)] == [("Copy", 0), ("Copy", 1)]


class Heard:
    """A log that keeps the names of events."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def info(self, event: str, **fields: object) -> None:
        self.events.append(event)

    def warning(self, event: str, **fields: object) -> None:
        self.events.append(event)

    def progress(self, done: float, doing: str) -> None:
        self.events.append(doing)


def test_checkpoints_have_the_seconds_at_which_they_were_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([100.0, 103.0, 109.5, 120.0])
    monkeypatch.setattr("time.process_time", lambda: next(now))
    log = Heard()
    watch = Stopwatch(log)
    watch.info("trial", loss=1.0)
    watch.info("checkpoint", step=0, score=0.5, target=0.9)
    watch.warning("something")
    watch.info("checkpoint", step=10, score=0.75, target=0.9)
    assert watch.curve == [(3.0, 0.5), (9.5, 0.75)]
    assert watch.seconds() == 20.0
    assert log.events == ["trial", "checkpoint", "something", "checkpoint"]
