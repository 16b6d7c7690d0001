"""Names that are taken by somebody else, requests of Jobs among them: nothing is adopted, and nothing is read."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from readapt_api import conditions as c
from readapt_operator.loop import PassFailed
from readapt_testing.fake_world import World, base_model, lora_adapter
from readapt_testing.status_lint import lint


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        yield world
        assert [text for k in ("BaseModel", "LoRAAdapter") for o in world.kube.of(k).values() for text in lint(o)] == []


def start(world: World) -> None:
    world.kube.put(base_model())
    world.kube.put(lora_adapter("a"))
    world.settle()


def wish(world: World, version: str) -> None:
    world.kube.change("BaseModel", "base", spec={"version": version})


def served_version(world: World) -> str:
    return str(world.kube.of("BaseModel")["base"]["status"]["version"])


def condition(world: World, kind: str, of: str = "BaseModel", name: str = "base") -> tuple[str, str, str]:
    """(status, reason, message)."""
    listed = world.kube.of(of)[name]["status"]["conditions"]
    found = next((x for x in listed if x["type"] == kind), {"status": "", "reason": "", "message": ""})
    return found["status"], found["reason"], found["message"]


def test_a_foreign_object_is_neither_taken_nor_deleted_and_stalls_its_owner(world: World) -> None:
    meta = {"name": "base", "namespace": "default"}
    world.kube.put({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"selector": {"app": "x"}}})
    world.kube.put(base_model())
    for _ in range(10):
        world.step()
    assert world.kube.of("Service")["base"]["spec"]["selector"] == {"app": "x"}
    assert condition(world, c.STALLED)[1] == c.FOREIGN_OBJECT
    world.kube.remove("Service", "base")
    world.settle()
    assert condition(world, c.UP_TO_DATE)[0] == "True"


def plant(world: World, name: str) -> None:
    """Somebody else's ConfigMap."""
    meta = {"name": name, "namespace": "default"}
    world.kube.put({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"request.json": "{}"}})


def adapt_job_of_a_twin() -> str:
    """The name that the Job of the repair has: it is deterministic."""
    with World() as twin:
        start(twin)
        wish(twin, "v2")
        twin.settle()
        (name,) = [n for n in twin.kube.of("Job") if "-adapt-" in n]
        return name


def test_no_job_reads_a_request_that_is_not_ours(world: World) -> None:
    start(world)
    name = adapt_job_of_a_twin()
    plant(world, name)
    wish(world, "v2")
    for _ in range(20):
        world.step()
    assert name not in world.kube.of("Job")
    assert condition(world, c.STALLED, "LoRAAdapter", "a")[1] == c.FOREIGN_OBJECT
    assert name in condition(world, c.STALLED, "LoRAAdapter", "a")[2]
    world.kube.remove("ConfigMap", name)
    world.settle()
    assert served_version(world) == "v2"


def start_of_a_repair(world: World) -> str:
    """A Job of which no pod has started yet."""
    start(world)
    wish(world, "v2")
    while True:
        world.reconcile()
        found = [n for n, j in world.kube.of("Job").items() if "-adapt-" in n and not j.get("status")]
        if found:
            return found[0]
        world.move()


def test_a_request_that_is_lost_before_its_job_starts_is_written_again(world: World) -> None:
    name = start_of_a_repair(world)
    world.kube.remove("ConfigMap", name)
    world.move()
    world.settle()
    assert served_version(world) == "v2"
    assert world.kube.creations[("Job", "default", name)] == 1


def test_a_request_that_is_exchanged_before_its_job_starts_stalls_its_owner(world: World) -> None:
    name = start_of_a_repair(world)
    world.kube.remove("ConfigMap", name)
    plant(world, name)
    world.reconcile()
    assert condition(world, c.STALLED, "LoRAAdapter", "a")[1] == c.FOREIGN_OBJECT


def test_what_an_earlier_base_of_the_name_left_is_waited_for_not_taken(world: World) -> None:
    old = {"kind": "BaseModel", "name": "base", "uid": "an-earlier-one", "controller": True}
    meta = {"name": "base", "namespace": "default", "ownerReferences": [old]}
    world.kube.put({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"selector": {"x": "y"}}})
    world.kube.put(base_model())
    world.step()
    with pytest.raises(PassFailed, match="earlier"):
        world.step()
    world.kube.remove("Service", "base")
    world.settle()
    assert condition(world, c.UP_TO_DATE)[0] == "True"
