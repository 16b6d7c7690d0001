"""A fleet's seconds, with numbers worked out by hand: work of the move counts once, one by one it does not."""

from __future__ import annotations

import pytest
from fleet import CUTS, FleetPlan, MoveSeconds, adapters_table, table, total
from study_rows import Row

MOVE = MoveSeconds(loading=5.0, drift=2.0)


def row(task: str, way: str, seconds: float, passed: bool = True, **shared: float) -> Row:
    return Row(
        move="harder",
        task=task,
        size=200,
        seed=0,
        way=way,
        old_score=0.9,
        of_copy=0.95,
        shared={"yardstick": 0.1, "replay": 0.1, "old answers": 0.2, **shared},
        seconds=seconds,
        passed=passed,
        score=0.9,
        retention=0.9,
        curve=(),
        steps=0,
        origin="Copied",
        parts={},
    )


ROWS = [
    row("first", "ours", 30.0, yardstick=12.0, replay=8.0, **{"old answers": 10.0}),
    row("first", "Copy+tuning", 50.0, yardstick=12.0, replay=8.0, **{"old answers": 10.0}),
    row("second", "ours", 20.0, **{"old answers": 11.0}),
    row("second", "Copy+tuning", 60.0, passed=False, **{"old answers": 11.0}),
]


def test_ours_loads_and_samples_once_and_asks_every_old_pair() -> None:
    ours = total("ours", ROWS, MOVE)
    assert ours.of_move == pytest.approx(5 + 2 + 12 + 8)
    assert ours.of_adapters == pytest.approx([30 + 10, 20 + 11])
    assert ours.seconds == pytest.approx(27 + 71)


def test_one_by_one_each_loads_both_bases_and_needs_neither_drift_nor_text() -> None:
    alone = total("Copy+tuning", ROWS, MOVE)
    assert alone.seconds == pytest.approx(2 * 5 + (50 + 10) + (60 + 11))
    assert alone.ready == 1


def test_the_tables_tell_who_is_not_ready() -> None:
    totals = [total(way, ROWS, MOVE) for way in ("ours", "Copy+tuning")]
    ours, alone = table(totals).splitlines()[2:]
    assert ours.startswith("| ours | 2/2 | 98 | 27 |")
    assert alone.startswith("| Copy+tuning | 1/2 | 141 | 10 |")
    assert "| 1.44 |" in alone
    assert sum("not ready" in line for line in adapters_table(ROWS).splitlines()) == 1


def test_a_fleet_of_eight_is_four_tasks_of_two_seeds() -> None:
    plan = FleetPlan(["harder"], CUTS, [200], 0, ("ours",), adapter_steps=60, adapters=8)
    cases = list(plan.cases())
    assert len(set(cases)) == 8
    assert {(task, seed) for _, task, _, seed in cases} == {(task, seed) for task in CUTS for seed in (0, 1)}
