"""Which rung comes next and what the results amount to."""

from __future__ import annotations

import pytest

from readapt_api.artifacts import Origin
from readapt_api.jobs import GateVerdict, Interval, RungResult
from readapt_runtime.adapt.ladder import message, next_rung, passes, reason

PASSED, FAILED, UNDECIDED = GateVerdict.PASSED, GateVerdict.FAILED, GateVerdict.UNDECIDED


def rung(
    origin: Origin, verdict: GateVerdict, retention: float | None = None, least: float | None = None
) -> RungResult:
    return RungResult(
        origin=origin,
        verdict=verdict,
        score=0.9,
        reference=0.91,
        interval=Interval(lower=-0.02, upper=0.01),
        samples=800,
        samples_needed=2400 if verdict is UNDECIDED else None,
        retention=retention,
        retention_floor=least,
        seconds=1.0,
    )


COPY_FAILED = rung(Origin.COPIED, FAILED)


@pytest.mark.parametrize(
    ("policy", "done", "expected"),
    [
        ("Auto", [], Origin.COPIED),
        ("Auto", [COPY_FAILED], Origin.RELORA),
        ("Auto", [rung(Origin.COPIED, UNDECIDED)], Origin.RELORA),
        ("Auto", [rung(Origin.COPIED, PASSED)], None),
        ("Auto", [rung(Origin.COPIED, PASSED, 0.5, 0.9)], Origin.RELORA),
        ("Auto", [COPY_FAILED, rung(Origin.RELORA, FAILED)], None),
        ("Copy", [], Origin.COPIED),
        ("Copy", [COPY_FAILED], None),
        ("ReLoRA", [], Origin.RELORA),
        ("ReLoRA", [rung(Origin.RELORA, UNDECIDED)], None),
    ],
)
def test_the_ladder_stops_at_the_first_rung_that_passes(
    policy: str, done: list[RungResult], expected: Origin | None
) -> None:
    assert next_rung(policy, done) is expected


@pytest.mark.parametrize(
    ("last", "passed", "expected"),
    [
        (rung(Origin.RELORA, PASSED), True, "GatePassed"),
        (rung(Origin.RELORA, PASSED, 0.8, 0.75), True, "GatePassed"),
        (rung(Origin.RELORA, PASSED, 0.7, 0.75), False, "RetentionTooLow"),
        (rung(Origin.RELORA, PASSED, None, 0.75), True, "GatePassed"),
        (rung(Origin.RELORA, FAILED, 0.7, 0.75), False, "GateFailed"),
        (rung(Origin.RELORA, UNDECIDED), False, "GateUndecided"),
    ],
)
def test_the_reason_is_that_of_the_last_rung(last: RungResult, passed: bool, expected: str) -> None:
    assert passes(last) is passed
    assert reason([COPY_FAILED, last]) == expected


def test_messages_tell_what_is_missing() -> None:
    assert "about 2400 examples" in message(rung(Origin.RELORA, UNDECIDED), 0.03)
    assert "retention 0.70 is below 0.75" in message(rung(Origin.RELORA, PASSED, 0.7, 0.75), 0.03)
    assert "-1.0 points on 800 examples, interval -2.0 to +1.0, allowed -3.0" in message(COPY_FAILED, 0.03)
