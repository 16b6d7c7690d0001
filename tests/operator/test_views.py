"""What documents of the API server say about pods that do not start."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from readapt_api import labels
from readapt_operator.memory import Memory
from readapt_operator.views import deployment_view, job_view, pod_view

LACKING = '0/1 nodes are available: persistentvolumeclaim "typo" not found.'
UNSCHEDULED = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": LACKING}
PULL = {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "x"'}
FAILED = {"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "message": "active longer than deadline"}


def job(*conditions: dict[str, str], ready: int = 0) -> dict[str, Any]:
    meta = {"name": "j", "uid": "j-uid", "labels": {labels.JOB_KIND: "fetch"}}
    return {"metadata": meta, "status": {"conditions": list(conditions), "ready": ready}}


def pod(name: str = "job", conditions: tuple[dict[str, str], ...] = (), **states: Any) -> dict[str, Any]:
    meta = {"name": "p", "uid": "p-uid", "labels": {labels.REVISION: "r"}}
    containers = [{"name": name, **states}] if states else []
    return {"metadata": meta, "status": {"conditions": list(conditions), "containerStatuses": containers}}


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": message} if message else {"reason": reason}}


def ended(code: int, reason: str = "Error", message: str = "") -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "reason": reason, "message": message}}


@pytest.fixture
def memory() -> Memory:
    return Memory(lambda: 0.0)


WAITS: dict[str, tuple[dict[str, Any], str]] = {
    "no node": (pod(conditions=(UNSCHEDULED,)), LACKING),
    "no image": (pod(state={"waiting": PULL}), 'ImagePullBackOff: Back-off pulling image "x"'),
    "no volume": (pod(state=waiting("CreateContainerError", "no Secret")), "CreateContainerError: no Secret"),
    "bad name": (pod(state=waiting("InvalidImageName")), "InvalidImageName"),
    "starts": (pod(state=waiting("ContainerCreating")), ""),
    "runs": (pod(state={"running": {}}), ""),
    "is new": (pod(), ""),
}  # fmt: skip


@pytest.mark.parametrize(("body", "text"), WAITS.values(), ids=WAITS)
def test_a_job_knows_what_its_pod_waits_for(memory: Memory, body: dict[str, Any], text: str) -> None:
    assert job_view(job(), [body], memory).waits == text


def test_what_a_pod_waited_for_outlives_it(memory: Memory) -> None:
    """The Job controller deletes the pod before it says DeadlineExceeded."""
    job_view(job(), [pod(conditions=(UNSCHEDULED,))], memory)
    assert job_view(job(), [], memory).waits == LACKING
    view = job_view(job(FAILED), [], memory)
    assert (view.failed, view.waits) == (True, LACKING)


def test_a_pod_that_started_after_all_waits_no_more(memory: Memory) -> None:
    job_view(job(), [pod(state={"waiting": PULL})], memory)
    view = job_view(job(ready=1), [pod(state={"running": {}})], memory)
    assert (view.running, view.waits) == (True, "")
    assert job_view(job(FAILED), [], memory).waits == ""


TROUBLES: dict[str, tuple[dict[str, Any], str, int | None]] = {
    "no node": (pod("server", (UNSCHEDULED,)), LACKING, None),
    "no image": (pod("server", state={"waiting": PULL}), 'ImagePullBackOff: Back-off pulling image "x"', None),
    "out of memory": (
        pod("server", state=waiting("CrashLoopBackOff", "back-off 10s"), lastState=ended(137, "OOMKilled")),
        "OOMKilled (exit code 137)",
        137,
    ),
    "refuses": (
        pod("server", state=waiting("CrashLoopBackOff"), lastState=ended(64, message="log\nreadapt: BadOptions: x\n")),
        "Error (exit code 64): readapt: BadOptions: x",
        64,
    ),
    "has just ended": (pod("server", state=ended(70), lastState=ended(64)), "Error (exit code 70)", 70),
    "tries again": (pod("server", state={"running": {}}, lastState=ended(70)), "Error (exit code 70)", 70),
    "on its way": (pod("server", state={"running": {}}, lastState={}), "", None),
    "ready again": (
        pod("server", ({"type": "Ready", "status": "True"},), state={"running": {}}, lastState=ended(64)), "", None),
}  # fmt: skip


@pytest.mark.parametrize(("body", "trouble", "code"), TROUBLES.values(), ids=TROUBLES)
def test_a_serving_pod_knows_why_it_is_not_ready(body: dict[str, Any], trouble: str, code: int | None) -> None:
    view = pod_view(body)
    assert view is not None
    assert (view.trouble, view.exit_code) == (trouble, code)


@pytest.mark.parametrize(
    ("stamp", "time"),
    [("2025-01-01T00:00:00Z", datetime(2025, 1, 1, tzinfo=UTC)), ("2025-01-01T00:00:00", None), ("soon", None)],
)
def test_only_a_time_is_taken_for_the_begin_of_a_drain(stamp: str, time: datetime | None) -> None:
    meta = {"name": "d", "labels": {}, "annotations": {labels.RETIRED_AT: stamp}, "creationTimestamp": ""}
    assert deployment_view({"metadata": meta, "spec": {}}).retired_at == time


@pytest.mark.parametrize(
    ("mark", "others"),
    [
        ('[["u", "adapt", "sha256:1", ""]]', (("u", "adapt", "sha256:1", ""),)),
        ("[]", ()),
        ("no JSON", ()),
        ('[["u"]]', ()),
    ],
)
def test_a_job_says_whose_work_it_does_besides(memory: Memory, mark: str, others: tuple[Any, ...]) -> None:
    body = job()
    body["metadata"]["annotations"] = {labels.OTHER_ITEMS: mark}
    assert job_view(body, [], memory).others == others
    assert job_view(job(), [], memory).others == ()
