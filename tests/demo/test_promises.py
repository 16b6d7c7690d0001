"""The promises of the demo: a run that kept them has no line, each broken one has one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from readapt_demo.promises import broken

Report = dict[str, Any]
SCORES = {"score_before": 0.91, "score_copy": 0.87, "retention": 0.96}
ROW = {"name": "parcels", "origin": "ReLoRA", "gate": "GatePassed"} | SCORES
KEPT: Report = {
    "adapters": [ROW, ROW | {"name": "shifts", "origin": "Transported", "score_copy": 0.2}],
    "requests": {
        "sent": 90,
        "failed": 0,
        "telling": {"smollm2": 7, "parcels": 1, "shifts": 9},
        "by_set": {"0a1b2c3d4e": 60, "5f6a7b8c9d": 30},
        "by_connection": {"kept": 44, "new": 46},
    },
    "mixed_sets": 0,
    "native_bf16": True,
    "rollback_jobs": 0,
    "rollback_seconds": 59.9,
    "steps": [{"name": "upgrade", "seconds": 700.0}, {"name": "roll-back", "seconds": 500.0}],
}
OF_ANY_RUN: dict[str, Callable[[Report], object]] = {
    "no request was sent": lambda r: r["requests"].update(sent=0),
    "2 of 90 requests failed": lambda r: r["requests"].update(failed=2),
    "3 answers came from a mixed set": lambda r: r.update(mixed_sets=3),
    "no answer of parcels could have shown a mixed set": lambda r: r["requests"]["telling"].update(parcels=0),
    "no answer could have shown a mixed set": lambda r: r["requests"]["telling"].clear(),
    "set 5f6a7b8c9d answered nobody": lambda r: r["requests"]["by_set"].update({"5f6a7b8c9d": 0}),
    "the client with a kept connection got no answer": lambda r: r["requests"]["by_connection"].update(kept=0),
    "the roll-back started 1 Jobs": lambda r: r.update(rollback_jobs=1),
    "the roll-back took 60.0 s": lambda r: r.update(rollback_seconds=60.0),
}
OF_GENERATED_TASKS: dict[str, Callable[[Report], object]] = {
    "parcels: the variant's origin is Copied, which is no repair": lambda r: r["adapters"][0].update(origin="Copied"),
    "parcels: the variant's origin is None": lambda r: r["adapters"][0].update(origin=None, gate=None),
    "shifts: the gate and the retention say RetentionTooLow": lambda r: r["adapters"][1].update(gate="RetentionTooLow"),
    "parcels: retention was not measured": lambda r: r["adapters"][0].update(retention=None),
    "parcels: Copy was not tried": lambda r: r["adapters"][0].update(score_copy=None),
    "parcels: Copy scored 0.88": lambda r: r["adapters"][0].update(score_copy=0.88),
    "the demo took 1201 s": lambda r: r["steps"].append({"name": "judge", "seconds": 1.0}),
}


def _but(change: Callable[[Report], object]) -> Report:
    report = copy.deepcopy(KEPT)
    change(report)
    return report


@pytest.mark.parametrize("generated", [True, False])
def test_a_run_that_kept_its_promises(generated: bool) -> None:
    assert broken(KEPT, generated=generated) == []


@pytest.mark.parametrize("says", OF_ANY_RUN)
@pytest.mark.parametrize("generated", [True, False])
def test_a_broken_promise_is_one_line(says: str, generated: bool) -> None:
    (line,) = broken(_but(OF_ANY_RUN[says]), generated=generated)
    assert line.startswith(says)


@pytest.mark.parametrize("says", OF_GENERATED_TASKS)
def test_what_is_promised_of_generated_tasks_alone(says: str) -> None:
    report = _but(OF_GENERATED_TASKS[says])
    (line,) = broken(report, generated=True)
    assert line.startswith(says)
    assert broken(report, generated=False) == []


def test_a_processor_without_bf16_products_may_take_its_time() -> None:
    slow = _but(lambda r: r["steps"].append({"name": "judge", "seconds": 3000.0}))
    assert broken(slow | {"native_bf16": False}, generated=True) == []
    assert len(broken(slow, generated=True)) == 1
