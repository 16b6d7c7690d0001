"""Which rung comes next and what the results amount to."""

from __future__ import annotations

import pytest

from readapt_api.adaptation import Metric, Policy
from readapt_api.artifacts import Origin
from readapt_api.jobs import GateVerdict, Interval, RungResult
from readapt_runtime.adapt.data import Example, Splits, split
from readapt_runtime.adapt.ladder import message, next_rung, passes, reason, rungs_of
from readapt_runtime.examples import BadData

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


SOME = [Example(f"p{i}", "ab"[i % 2]) for i in range(120)]
LABELLED: Splits = split(SOME[:20], SOME[20:], [])
UNLABELLED: Splits = split([], [], [], [f"i{i}" for i in range(200)], Metric.AGREEMENT)
COPY_FAILED = rung(Origin.COPIED, FAILED)


@pytest.mark.parametrize(
    ("policy", "done", "expected"),
    [
        ("Auto", [], Origin.COPIED),
        ("Auto", [COPY_FAILED], Origin.TRANSPORTED),
        ("Auto", [rung(Origin.COPIED, UNDECIDED)], Origin.TRANSPORTED),
        ("Auto", [rung(Origin.COPIED, PASSED)], None),
        ("Auto", [rung(Origin.COPIED, PASSED, 0.5, 0.9)], Origin.TRANSPORTED),
        ("Auto", [COPY_FAILED, rung(Origin.TRANSPORTED, FAILED)], Origin.RELORA),
        ("Auto", [COPY_FAILED, rung(Origin.TRANSPORTED, PASSED)], None),
        ("Auto", [*[COPY_FAILED] * 2, rung(Origin.RELORA, FAILED)], Origin.REFRESHED),
        ("Auto", [*[COPY_FAILED] * 3, rung(Origin.REFRESHED, FAILED)], Origin.RETRAINED),
        ("Auto", [*[COPY_FAILED] * 4, rung(Origin.RETRAINED, FAILED)], None),
        ("Transport", [], Origin.TRANSPORTED),
        ("Copy", [], Origin.COPIED),
        ("Copy", [COPY_FAILED], None),
        ("ReLoRA", [], Origin.RELORA),
        ("ReLoRA", [rung(Origin.RELORA, UNDECIDED)], None),
        ("Refresh", [], Origin.REFRESHED),
        ("Retrain", [], Origin.RETRAINED),
    ],
)
def test_the_ladder_stops_at_the_first_rung_that_passes(
    policy: str, done: list[RungResult], expected: Origin | None
) -> None:
    assert next_rung(rungs_of(Policy(policy), LABELLED), done) is expected


@pytest.mark.parametrize(
    ("policy", "splits", "expected"),
    [
        ("Auto", LABELLED, [Origin.COPIED, Origin.REFITTED, Origin.TRANSPORTED]),
        ("ReLoRA", LABELLED, [Origin.REFITTED, Origin.RELORA]),
        ("Copy", LABELLED, [Origin.COPIED]),
        ("Retrain", LABELLED, [Origin.RETRAINED]),
        ("Auto", UNLABELLED, [Origin.COPIED, Origin.TRANSPORTED, Origin.REFRESHED]),
    ],
)
def test_what_learned_task_after_task_has_its_magnitudes_fitted_first(
    policy: str, splits: Splits, expected: list[Origin]
) -> None:
    assert list(rungs_of(Policy(policy), splits, learned=True))[: len(expected)] == expected
    assert Origin.REFITTED not in rungs_of(Policy(policy), splits)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("Auto", [Origin.COPIED, Origin.TRANSPORTED, Origin.REFRESHED]),
        ("Transport", [Origin.TRANSPORTED]),
        ("Copy", [Origin.COPIED]),
        ("Refresh", [Origin.REFRESHED]),
    ],
)
def test_inputs_alone_carry_the_rungs_that_need_no_labels(policy: str, expected: list[Origin]) -> None:
    assert list(rungs_of(Policy(policy), UNLABELLED)) == expected


@pytest.mark.parametrize("policy", ["ReLoRA", "Retrain"])
def test_a_policy_that_needs_labels_is_refused_without(policy: str) -> None:
    with pytest.raises(BadData, match=f"policy {policy} needs train and validation"):
        rungs_of(Policy(policy), UNLABELLED)


@pytest.mark.parametrize("policy", [policy for policy in Policy if policy is not Policy.COPY])
def test_what_learns_needs_examples_to_learn_from(policy: Policy) -> None:
    few = split(SOME[:9], [Example(f"v{i}", "a") for i in range(8)], [Example("t", "a")])
    with pytest.raises(BadData, match="at least 8 are needed"):
        rungs_of(policy, few)
    assert rungs_of(Policy.COPY, few) == (Origin.COPIED,)


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
    ended = rung(Origin.TRANSPORTED, UNDECIDED).model_copy(update={"samples_left": 1600})
    why = "undecided after 800 of 2400: the others would hardly make it pass, about 2400 examples would pass it"
    assert message(ended, 0.03).endswith(why)
    assert message(ended.model_copy(update={"samples_needed": None}), 0.03).endswith("would hardly make it pass")
    assert "retention 0.70 is below 0.75" in message(rung(Origin.RELORA, PASSED, 0.7, 0.75), 0.03)
    scores = "Copied: Accuracy 90.0 % against 91.0 %, gain -1.0 points on 800 examples"
    assert f"{scores}, interval -2.0 to +1.0, allowed -3.0" in message(COPY_FAILED, 0.03)


def test_messages_of_losses_speak_of_nats_and_of_gains() -> None:
    lost = COPY_FAILED.model_copy(update={"metric": Metric.TOKEN_LOSS, "score": 0.93, "reference": 0.91})
    assert "TokenLoss 0.930 nats per token against 0.910 nats per token, gain -0.020 nats per token" in message(
        lost, 0.03
    )
    assert "interval -0.020 to +0.010, allowed -0.030" in message(lost, 0.03)
