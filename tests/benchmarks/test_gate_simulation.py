"""The gate keeps its promise where the truth is known, and the simulation would notice if it did not."""

from __future__ import annotations

import pytest
from gate_simulation import (
    CONFIDENCE,
    Case,
    losses_of,
    report,
    simulate,
    walk_agreement,
    walk_f1,
    walk_loss,
    walk_pairs,
)

CASES = {
    "right or wrong, few differ": Case("right or wrong", walk_pairs, 0.03, 300, 0.03),
    "right or wrong, many differ": Case("right or wrong", walk_pairs, 0.03, 300, 0.3),
    "right or wrong, small margin": Case("right or wrong", walk_pairs, 0.01, 1000, 0.1),
    "agreement": Case("agreement", walk_agreement, 0.03, 300),
    "F1, few differ": Case("F1", walk_f1, 0.03, 150, 0.05),
    "token loss, rare and large": Case("token loss", walk_loss, 0.03, 150, 0.01),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_ladder_of_candidates_that_lose_the_margin_passes_less_often_than_allowed(case: Case) -> None:
    ladders = 2000 if case.walk in (walk_pairs, walk_agreement) else 150
    row = simulate(case, case.margin, ladders, seed=1)
    assert not row.tolerable
    assert row.passed <= 1 - CONFIDENCE
    assert row.plain > 0.5, "five tries at a threshold let pass what loses the margin more often than not"


def test_a_gate_that_does_not_divide_its_budget_is_noticed() -> None:
    row = simulate(CASES["right or wrong, many differ"], 0.03, 4000, seed=2, budget_rungs=1)
    assert row.passed > 1 - CONFIDENCE
    assert not row.sound


def test_what_is_as_good_as_before_passes_given_examples() -> None:
    row = simulate(Case("right or wrong", walk_pairs, 0.03, 3000, 0.1), 0.0, 200, seed=3)
    assert row.passed > 0.97
    assert row.failed < 0.02


def test_the_report_marks_false_passes() -> None:
    case = CASES["agreement"]
    text = report([simulate(case, loss, 50, seed=4) for loss in losses_of(case)])
    line = next(line for line in text.splitlines() if line.startswith("| agreement | 3 "))
    cells = [cell.strip() for cell in line.strip("|").split("|")][4:]
    assert [cell.startswith("**") for cell in cells] == [loss >= case.margin for loss in losses_of(case)]
