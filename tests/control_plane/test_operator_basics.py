"""Single promises of the operator on a real API server: suspend, deletion, conflicts, foreigners, two at once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from readapt_api import conditions, labels
from readapt_cluster.control_plane import ControlPlane
from readapt_testing.chart import operator_credentials
from readapt_testing.kube import Kube, KubeError
from readapt_testing.operator_process import OperatorProcess
from readapt_testing.recorder import Recorder
from readapt_testing.world import ADAPTER, BASE, World, condition_of

pytestmark = [pytest.mark.control_plane, pytest.mark.fault]
Worlds = Callable[..., AbstractContextManager[World]]


def test_life_of_one_served_base(world: World) -> None:
    """One roll-out serves several promises: settled is quiet, scale, name conflict, deletion in both orders."""
    world.apply_base()
    world.apply_adapter()
    world.wait_settled("v1")
    _settled_world_is_left_alone(world)
    _scaling_starts_no_job(world)
    _second_claim_on_a_name_stalls(world)
    _deleted_adapter_leaves_the_set_without_new_pods(world)
    _deleted_base_takes_everything_along(world)


def _settled_world_is_left_alone(world: World) -> None:
    """A resync (every 20 s here) writes nothing."""
    world.recorder.quiet(3.0, 60.0)
    before = world.recorder.changes()
    with pytest.raises(TimeoutError):
        world.recorder.wait(lambda r: r.changes() > before, 25.0, "changed")


def _scaling_starts_no_job(world: World) -> None:
    jobs = world.recorder.creations("Job")
    world.kube.patch("BaseModel", BASE, {"spec": {"replicas": 2}}, world.namespace, "scale")
    world.wait("BaseModel", BASE, lambda o: o["status"].get("readyReplicas") == 2, "scaled to 2")
    world.wait_settled("v1")
    world.wait("LoRAAdapter", ADAPTER, lambda o: o["status"]["verified"] == "2/2", "verified on both")

    assert world.recorder.creations("Job") == jobs
    assert len(world.recorder.live("Deployment")) == 1


def _second_claim_on_a_name_stalls(world: World) -> None:
    world.apply_adapter("late", servedName=ADAPTER)
    stalled = world.wait_condition("LoRAAdapter", "late", conditions.STALLED, reason=conditions.NAME_CONFLICT)
    assert ADAPTER in stalled["message"]
    assert condition_of(world.adapter(), conditions.READY) is not None
    world.kube.delete("LoRAAdapter", "late", world.namespace)
    world.wait_settled("v1")


def _deleted_adapter_leaves_the_set_without_new_pods(world: World) -> None:
    deployments = world.recorder.creations("Deployment")
    before = world.base()["status"]["set"]
    world.kube.delete("LoRAAdapter", ADAPTER, world.namespace)
    world.wait("BaseModel", BASE, lambda o: o["status"].get("set") != before, "without the adapter")
    world.recorder.wait(lambda r: not _of_adapter(r, "Job"), 60, "collected")

    assert world.recorder.creations("Deployment") == deployments
    world.wait_settled("v1")


def _deleted_base_takes_everything_along(world: World) -> None:
    world.kube.delete("BaseModel", BASE, world.namespace)
    kinds = ("Job", "ConfigMap", "Deployment", "Service")
    world.recorder.wait(lambda r: not any(r.live(kind) for kind in kinds), 120, "collected by the controllers")


def _of_adapter(recorder: Recorder, kind: str) -> list[str]:
    return [n for n, o in recorder.live(kind).items() if labels.ADAPTER in o["metadata"].get("labels", {})]


def test_suspended_base_starts_nothing_until_resumed(world: World) -> None:
    world.apply_base(suspend=True)
    held = world.wait_condition("BaseModel", BASE, conditions.UP_TO_DATE, "False", conditions.SUSPENDED)
    assert held["message"]
    world.recorder.quiet(3.0, 60.0)
    assert world.recorder.creations("Job") == {}
    assert condition_of(world.base(), conditions.RECONCILING) is None

    world.kube.patch("BaseModel", BASE, {"spec": {"suspend": False}}, world.namespace)
    world.recorder.wait(lambda r: len(r.creations("Job")) == 1, 60, "fetching")
    world.wait("BaseModel", BASE, lambda o: condition_of(o, conditions.RECONCILING) is not None, "reconciling")


def test_foreign_service_is_neither_adopted_nor_deleted(world: World) -> None:
    foreign = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": BASE}, "spec": {"ports": [{"port": 1}]}}
    uid = world.kube.create(foreign, world.namespace)["metadata"]["uid"]
    world.apply_base()
    stalled = world.wait_condition("BaseModel", BASE, conditions.STALLED, reason=conditions.FOREIGN_OBJECT)

    assert f"Service {BASE}" in stalled["message"]
    kept = world.kube.get("Service", BASE, world.namespace) or {}
    assert (kept["metadata"]["uid"], kept["spec"]["ports"][0]["port"]) == (uid, 1)
    world.kube.delete("Service", BASE, world.namespace)
    world.wait_settled("v1")


def test_second_operator_waits_and_takes_over(
    world: World, control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    """While both live there is one set of Jobs; after the first is killed the second goes on."""
    credentials = operator_credentials(control_plane, namespace)
    world.kube.wait("Lease", "readapt-operator", namespace, lambda lease: lease is not None, 60, "held by the first")
    with OperatorProcess(credentials, namespace, tmp_path, name="second") as second:
        world.apply_base()
        world.recorder.wait(lambda r: len(r.creations("Job")) == 1, 120, "fetching")
        assert "created Job" not in second.log
        world.operator.kill()
        world.wait_settled("v1")
        assert set(world.recorder.creations("Job").values()) == {1}
        assert "created Deployment" in second.log
        assert second.stop() == 0


def test_api_server_restart_is_waited_for(world: World, control_plane: ControlPlane) -> None:
    world.apply_base()
    world.recorder.wait(lambda r: len(r.creations("Job")) == 1, 120, "fetching")
    control_plane.restart_apiserver()
    world.wait_settled("v1")

    assert set(world.recorder.creations("Job").values()) == {1}
    assert world.operator.exit_code is None or world.operator.starts > 1


def test_operator_may_do_what_its_chart_says_and_no_more(
    control_plane: ControlPlane, namespace: str, kube: Kube
) -> None:
    with Kube(operator_credentials(control_plane, namespace)) as operator:
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "of-a-user"}}
        kube.create(secret, namespace)
        assert operator.items("BaseModel", namespace) == []
        for forbidden in (
            lambda: operator.get("Secret", "of-a-user", namespace),
            lambda: operator.items("Secret", namespace),
            lambda: operator.items("BaseModel", "default"),
            lambda: operator.items("BaseModel"),
            lambda: operator.items("Node"),
            lambda: operator.delete("Pod", "any", namespace),
        ):
            with pytest.raises(KubeError, match="403"):
                forbidden()
