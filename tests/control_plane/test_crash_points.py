"""The operator killed right after a write of an upgrade, and restarted: the same end, everything created once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import pytest

from readapt_api import labels
from readapt_testing.end_state import created, end_state
from readapt_testing.fault_proxy import Trigger
from readapt_testing.kube import Kube, Object
from readapt_testing.plugin import fresh_namespace
from readapt_testing.world import BASE, World

pytestmark = [pytest.mark.control_plane, pytest.mark.fault]

_CORE, _BATCH, _APPS = "/api/v1/namespaces/[^/]+", "/apis/batch/v1/namespaces/[^/]+", "/apis/apps/v1/namespaces/[^/]+"
_READAPT = "/apis/readapt.dev/v1alpha1/namespaces/[^/]+"


def is_adapt(body: Object) -> bool:
    return bool(body["metadata"]["labels"].get(labels.JOB_KIND) == "adapt")


def is_of_v2(body: Object) -> bool:
    return bool(body["metadata"].get("annotations", {}).get(labels.VERSION) == "v2")


def starts_upgrade(body: Object) -> bool:
    return bool((body["status"].get("upgrade") or {}).get("toVersion") == "v2")


POINTS: dict[str, Callable[[], Trigger]] = {
    "request ConfigMap": lambda: Trigger("POST", f"{_CORE}/configmaps", is_adapt),
    "Job": lambda: Trigger("POST", f"{_BATCH}/jobs", is_adapt),
    "Deployment": lambda: Trigger("POST", f"{_APPS}/deployments", is_of_v2),
    "selector patch": lambda: Trigger("PATCH", f"{_CORE}/services/{BASE}"),
    "status write": lambda: Trigger("PATCH", f"{_READAPT}/basemodels/{BASE}/status", starts_upgrade),
}


@dataclass(frozen=True, slots=True)
class Reference:
    """An upgrade that nobody disturbed."""

    state: dict[str, Any]
    created: dict[str, Counter[str]]


@pytest.fixture(scope="module")
def reference(worlds: Callable[..., AbstractContextManager[World]], kube: Kube) -> Iterator[Reference]:
    with fresh_namespace(kube, "crash-reference") as namespace, worlds(namespace) as world:
        settle_at_v1(world)
        world.wish("v2")
        world.wait_settled("v2")
        world.recorder.quiet(3.0, 60.0)
        yield Reference(end_state(world), created(world))


def settle_at_v1(world: World) -> None:
    world.apply_base()
    world.apply_adapter()
    world.wait_settled("v1")


def test_reference_creates_everything_once(reference: Reference) -> None:
    kinds = {"Job": 6, "Deployment": 2, "Service": 1}

    assert {kind: sum(reference.created[kind].values()) for kind in kinds} == kinds
    assert all(times == 1 for counts in reference.created.values() for times in counts.values())


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.replace(" ", "-"))
def test_killed_after_write_reaches_the_same_state(
    point: str, reference: Reference, worlds: Callable[..., AbstractContextManager[World]], namespace: str
) -> None:
    with worlds(namespace, faults=True) as world:
        settle_at_v1(world)
        trigger = POINTS[point]()
        world.operator.kill_after(trigger)
        world.wish("v2")
        world.operator.await_death(trigger, timeout_s=600)
        world.operator.start()
        world.wait_settled("v2")
        world.recorder.quiet(3.0, 60.0)

        assert created(world) == reference.created
        assert end_state(world) == reference.state
        assert set(world.recorder.creations("Job").values()) == {1}
