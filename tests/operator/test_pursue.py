"""From attempts to a verdict: one row per situation."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from readapt_api import conditions as c
from readapt_api import labels
from readapt_api.jobs import AdaptItem, AdaptRequest, DriftRequest, GateSettings, JobKind, Outcome, Summary
from readapt_api.v1alpha1.base_model import BaseModelResource
from readapt_operator.builders.job import Task, build_request
from readapt_operator.builders.meta import Owner
from readapt_operator.decide.jobs import PROGRESS_S, START_POLL_S, Start, Wording, pursue, schedule
from readapt_operator.decide.plan import Create, Delete, StartJob, State
from readapt_operator.observed import JobView, Observed, by_wish
from readapt_operator.queue import Key
from readapt_testing.fake_world import base_model

ONE, TWO = "sha256:" + 64 * "1", "sha256:" + 64 * "2"
REQUEST = DriftRequest(old_base=ONE, new_base=TWO)
OWNER = Owner("BaseModel", "default", "base", "uid")
TASK = Task(OWNER, "base", REQUEST, REQUEST.input_hash)
WORDING = Wording(c.MEASURING_DRIFT, c.DRIFT_FAILED, "drift")
OK = Summary(kind=JobKind.DRIFT, ok=True)
SAID = Summary(kind=JobKind.DRIFT, ok=False, reason="BadWeights", message="w.safetensors: NaN")


def job(attempt: int = 1, **fields: Any) -> JobView:
    view = JobView(
        body={"kind": "Job", "metadata": {"name": "j", "namespace": "default", "uid": "x", "resourceVersion": "1"}},
        name=f"j{attempt}",
        owner_uid="uid",
        kind=JobKind.DRIFT,
        input_hash=REQUEST.input_hash,
        retry="",
        attempt=attempt,
        succeeded=False,
        failed=False,
        deleting=False,
    )
    return replace(view, **fields)


def seen(*jobs: JobView, **fields: Any) -> Observed:
    nothing = Observed(
        key=Key("default", "base"),
        now=datetime(2025, 1, 1, tzinfo=UTC),
        runtime_image="image",
        admin_key="",
        propagation_s=3.0,
        drain_limit_s=600.0,
        retry_s=10.0,
        base=None,
        jobs=by_wish(jobs),
    )
    return replace(nothing, **fields)


RUNNING = job()
LOST = job(succeeded=True)
BROKEN = job(failed=True, settled_s=1000.0, exit_code=70)
ROWS: dict[str, tuple[tuple[JobView, ...], State | None, str, int | None]] = {
    "nothing yet": ((), State.WORKING, c.MEASURING_DRIFT, 1),
    "runs": ((RUNNING,), State.WORKING, c.MEASURING_DRIFT, None),
    "is being deleted": ((replace(BROKEN, deleting=True),), State.WORKING, c.MEASURING_DRIFT, None),
    "done": ((replace(LOST, summary=OK),), None, "", None),
    "done by an earlier attempt": ((replace(LOST, summary=OK), job(2, failed=True)), None, "", None),
    "success without a summary": ((LOST,), State.WORKING, c.MEASURING_DRIFT, 2),
    "success without a summary, thrice": ((job(3, succeeded=True),), State.STALLED, c.JOB_FAILED, None),
    "refused by exit code": ((replace(BROKEN, refused=True, exit_code=64),), State.STALLED, c.DRIFT_FAILED, None),
    "refused and said why": ((replace(BROKEN, refused=True, summary=SAID),), State.STALLED, c.DRIFT_FAILED, None),
    "says no, exits with 0": ((replace(LOST, summary=SAID),), State.STALLED, c.DRIFT_FAILED, None),
    "failed a moment ago": ((replace(BROKEN, settled_s=9.9),), State.WORKING, c.RETRYING, None),
    "failed long enough ago": ((replace(BROKEN, settled_s=10.0),), State.WORKING, c.MEASURING_DRIFT, 2),
    "second failure waits longer": ((replace(BROKEN, attempt=2, settled_s=19.9),), State.WORKING, c.RETRYING, None),
    "attempts used up": ((BROKEN, job(2, failed=True), job(3, failed=True)), State.STALLED, c.JOB_FAILED, None),
    "another input": ((replace(BROKEN, input_hash=ONE, refused=True),), State.WORKING, c.MEASURING_DRIFT, 1),
    "another wish to retry": ((replace(BROKEN, retry="x", refused=True),), State.WORKING, c.MEASURING_DRIFT, 1),
    "an earlier owner": ((replace(BROKEN, owner_uid="old", refused=True),), State.WORKING, c.MEASURING_DRIFT, 1),
}  # fmt: skip


@pytest.mark.parametrize(("jobs", "state", "reason", "attempt"), ROWS.values(), ids=ROWS)
def test_attempts_are_judged(jobs: tuple[JobView, ...], state: State | None, reason: str, attempt: int | None) -> None:
    errand = pursue(TASK, seen(*jobs), 3, WORDING)
    assert (errand.verdict.state if errand.verdict else None) is state
    assert (errand.verdict.reason if errand.verdict else "") == reason
    assert (errand.start.attempt if errand.start else None) == attempt
    assert (errand.summary is not None) == (state is None)


def test_a_failure_is_told_in_the_jobs_own_words() -> None:
    verdict = pursue(TASK, seen(replace(BROKEN, refused=True, summary=SAID)), 3, WORDING).verdict
    assert verdict is not None
    assert verdict.message == "drift: BadWeights: w.safetensors: NaN"


def test_a_job_whose_pod_cannot_start_says_what_it_waits_for_and_is_looked_at_again() -> None:
    lacking = '0/1 nodes are available: persistentvolumeclaim "typo" not found'
    verdict = pursue(TASK, seen(job(waits=lacking)), 3, WORDING).verdict
    assert verdict is not None
    assert (verdict.state, verdict.reason) == (State.WORKING, c.MEASURING_DRIFT)
    assert verdict.message == f"drift: Job j1 waits: {lacking}"
    assert verdict.again_s == START_POLL_S


def test_a_job_that_runs_is_not_looked_at_until_something_happens() -> None:
    verdict = pursue(TASK, seen(job(running=True)), 3, WORDING).verdict
    assert verdict is not None
    assert verdict.again_s is None


@pytest.mark.parametrize("kind", [JobKind.ADAPT, JobKind.EXTRACT])
def test_a_job_that_tells_how_far_it_is_is_looked_at_twice_a_minute(kind: JobKind) -> None:
    running = replace(seen(), jobs={TASK.wish: (job(running=True, kind=kind),)})
    verdict = pursue(TASK, running, 3, WORDING).verdict
    assert verdict is not None
    assert verdict.again_s == PROGRESS_S == 30.0


def test_a_deadline_is_told_with_what_the_pod_waited_for() -> None:
    late = replace(BROKEN, exit_code=None, attempt=3, failure="DeadlineExceeded", waits="ErrImagePull: no such tag")
    verdict = pursue(TASK, seen(late), 3, WORDING).verdict
    assert verdict is not None
    assert verdict.message.endswith("DeadlineExceeded; its pod waited: ErrImagePull: no such tag")


def test_a_retry_is_looked_for_when_it_is_due() -> None:
    verdict = pursue(TASK, seen(replace(BROKEN, settled_s=4.0)), 3, WORDING).verdict
    assert verdict is not None
    assert verdict.again_s == pytest.approx(6.0)


def base(**spec: Any) -> BaseModelResource:
    body = base_model(**spec)
    body["metadata"]["uid"] = "uid"
    return BaseModelResource.model_validate(body)


def tasks(count: int) -> list[Task]:
    owners = [Owner("LoRAAdapter", "default", f"a{i}", f"u{i}") for i in range(count)]
    return [Task(owner, "base", REQUEST, REQUEST.input_hash) for owner in owners]


def test_no_more_than_max_parallel_jobs_run_at_once() -> None:
    wished = tasks(3)
    running = job(owner_uid="u0")
    starts = [Start(t, 1) for t in wished[1:]]
    plan = schedule(seen(running), base(upgrade={"maxParallelJobs": 2}), wished, starts)
    (started,) = [a for a in plan.actions if isinstance(a, StartJob)]
    assert started.request["metadata"]["name"] == started.job["metadata"]["name"] == wished[1].name(1)
    assert plan.waiting == {wished[2].name(1)}


def test_a_running_job_that_nobody_wishes_for_is_deleted_and_frees_its_slot() -> None:
    (wished,) = tasks(1)
    plan = schedule(seen(RUNNING), base(upgrade={"maxParallelJobs": 1}), [wished], [Start(wished, 1)])
    assert [type(a) for a in plan.actions] == [Delete, StartJob]
    assert plan.actions[0] == Delete(RUNNING.body, "nobody wishes for its result any more")


def test_a_request_that_a_waiting_job_lacks_is_written_again() -> None:
    plan = schedule(seen(job(lacks_request=True)), base(), [TASK], [])
    assert plan.actions == (Create(build_request(TASK, 1)),)


@pytest.mark.parametrize("ended", [replace(LOST, summary=OK), BROKEN], ids=["succeeded", "failed"])
def test_an_ended_job_is_never_deleted(ended: JobView) -> None:
    assert schedule(seen(ended), base(), [], []).actions == ()


def test_suspended_nothing_starts() -> None:
    wished = tasks(2)
    plan = schedule(seen(), base(suspend=True), wished, [Start(t, 1) for t in wished])
    assert plan.actions == ()
    assert plan.held == {t.name(1) for t in wished}


def moves(count: int, new_base: str = TWO) -> list[Task]:
    """Adapters to carry over one move, each with its own reference."""
    found = []
    for number in range(count):
        item = AdaptItem(name=f"a{number}", reference=f"sha256:{number:064x}", data=ONE, gate=GateSettings())
        request = AdaptRequest(old_base=ONE, new_base=new_base, drift=ONE, items=(item,))
        owner = Owner("LoRAAdapter", "default", f"a{number}", f"u{number}")
        found.append(Task(owner, "base", request, request.item_hash(item)))
    return found


def started(plan: Any) -> list[list[str]]:
    """Names of the items of each Job that starts."""
    documents = [json.loads(a.request["data"]["request.json"]) for a in plan.actions if isinstance(a, StartJob)]
    return [[item["name"] for item in document["items"]] for document in documents]


def carrier(wished: list[Task], **fields: Any) -> JobView:
    """A Job of the first that also carries the others."""
    first, *others = wished
    mine = {"owner_uid": first.owner.uid, "kind": JobKind.ADAPT, "input_hash": first.input_hash}
    return job(others=tuple(t.wish for t in others), **mine, **fields)


def outcome(task: Task) -> Outcome:
    return Outcome(name="", input_hash=task.input_hash, passed=True)


def test_adapters_that_would_wait_for_a_slot_go_along_over_the_same_move() -> None:
    wished = moves(8)
    upgrade = {"maxParallelJobs": 2, "adaptersPerJob": 3}
    plan = schedule(seen(), base(upgrade=upgrade), wished, [Start(t, 1) for t in wished])
    assert started(plan) == [["a0", "a2", "a4"], ["a1", "a3", "a5"]]
    assert plan.waiting == {wished[6].name(1), wished[7].name(1)}
    first, _ = (a.job for a in plan.actions if isinstance(a, StartJob))
    assert json.loads(first["metadata"]["annotations"][labels.OTHER_ITEMS]) == [list(wished[n].wish) for n in (2, 4)]
    assert first["spec"]["activeDeadlineSeconds"] == 3 * 3600


def test_with_slots_for_all_each_adapter_has_its_own_job() -> None:
    wished = moves(4)
    plan = schedule(seen(), base(), wished, [Start(t, 1) for t in wished])
    assert started(plan) == [["a0"], ["a1"], ["a2"], ["a3"]]
    assert not any(
        labels.OTHER_ITEMS in a.job["metadata"]["annotations"] for a in plan.actions if isinstance(a, StartJob)
    )


@pytest.mark.parametrize(
    "attempts", [(1, 2), (2, 1)], ids=["what would go along failed before", "what would carry did"]
)
def test_a_further_attempt_goes_alone(attempts: tuple[int, int]) -> None:
    wished = moves(2)
    starts = [Start(t, n) for t, n in zip(wished, attempts, strict=True)]
    plan = schedule(seen(), base(upgrade={"maxParallelJobs": 1}), wished, starts)
    assert started(plan) == [["a0"]]
    assert plan.waiting == {wished[1].name(attempts[1])}


def test_another_move_does_not_go_along() -> None:
    wished = [*moves(1), *moves(2, new_base=ONE)[1:]]
    plan = schedule(seen(), base(upgrade={"maxParallelJobs": 1}), wished, [Start(t, 1) for t in wished])
    assert started(plan) == [["a0"]]


def test_a_job_that_carries_others_takes_one_slot() -> None:
    wished = moves(4)
    running = carrier(wished[:3])
    plan = schedule(seen(running), base(upgrade={"maxParallelJobs": 2}), wished, [Start(wished[3], 1)])
    assert started(plan) == [["a3"]]


def test_a_lost_request_is_written_again_with_all_its_items() -> None:
    wished = moves(3)
    plan = schedule(seen(carrier(wished, lacks_request=True)), base(), wished[:2], [])
    (written,) = plan.actions
    assert isinstance(written, Create)
    items = json.loads(written.body["data"]["request.json"])["items"]
    assert [item["name"] for item in items] == ["a0", "a1"], "nobody wishes for the third any more"


CARRIED: dict[str, tuple[dict[str, Any], State | None, int | None]] = {
    "the Job runs": ({"running": True}, State.WORKING, None),
    "it is done and tells": ({"succeeded": True}, None, None),
    "it is done and had no room to tell": ({"succeeded": True, "summary": OK}, State.WORKING, 1),
    "it was refused for its owner's sake": ({"failed": True, "refused": True}, State.WORKING, 1),
}


@pytest.mark.parametrize(("fields", "state", "attempt"), CARRIED.values(), ids=CARRIED)
def test_what_goes_along_is_judged_by_what_is_told_of_it(
    fields: dict[str, Any], state: State | None, attempt: int | None
) -> None:
    wished = moves(2)
    told = Summary(kind=JobKind.ADAPT, ok=True, outcomes=tuple(map(outcome, wished)))
    view = carrier(wished, **({"summary": told} if state is None else {}) | fields)
    errand = pursue(wished[1], seen(view), 3, WORDING)
    assert (errand.verdict.state if errand.verdict else None) is state
    assert (errand.start.attempt if errand.start else None) == attempt
    assert errand.outcome == (outcome(wished[1]) if state is None else None)
