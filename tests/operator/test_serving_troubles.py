"""Serving pods that do not start or do not answer, names that collide and sets that get lost, in virtual time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from readapt_api import conditions as c
from readapt_api import labels
from readapt_api.serving import AdapterState
from readapt_operator.kube.resources import Doc
from readapt_testing.fake_world import World, base_model, lora_adapter
from readapt_testing.status_lint import lint

DRAIN_LIMIT_S = 600.0


class TroubledWorld(World):
    """Pods of versions in ``troubled`` stay as they are told there and never get ready."""

    def __init__(self) -> None:
        self.troubled: dict[str, Doc] = {}
        super().__init__()

    def _start(self, pod: Doc) -> None:
        revision = pod["metadata"]["labels"][labels.REVISION]
        version = self.kube.of("Deployment")[f"base-{revision}"]["metadata"]["annotations"][labels.VERSION]
        if version in self.troubled:
            pod["status"]["containerStatuses"] = [{"name": "server", **self.troubled[version]}]
        else:
            super()._start(pod)


def ended(code: int, message: str) -> Doc:
    end = {"exitCode": code, "reason": "Error", "message": message}
    return {"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": end}}


REFUSES = ended(64, "readapt: BadConfig: no such architecture")
CRASHES = ended(70, "KeyError: 'x'")
NO_IMAGE = {"state": {"waiting": {"reason": "ErrImagePull", "message": "no such tag"}}}


@pytest.fixture
def world() -> Iterator[TroubledWorld]:
    """v1 is served with one adapter."""
    with TroubledWorld() as world:
        world.kube.put(base_model())
        world.kube.put(lora_adapter("a"))
        world.settle()
        yield world


def wish(world: World, version: str) -> None:
    world.kube.change("BaseModel", "base", spec={"version": version})


def condition(world: World, kind: str, of: str = "BaseModel", name: str = "base") -> tuple[str, str, str]:
    """(status, reason, message); empty when it is not there."""
    status = world.kube.of(of)[name].get("status", {})
    found = next((x for x in status.get("conditions", []) if x["type"] == kind), None)
    return (found["status"], found["reason"], found["message"]) if found else ("", "", "")


def selected(world: World) -> str:
    return str(world.kube.of("Service")["base"]["spec"]["selector"][labels.REVISION])


def verified(world: World) -> set[str]:
    """Served names that the pods of the selected revision have verified."""
    states = [s for s in world.pods.states.values() if s.revision == selected(world)]
    return {a.name for s in states for a in s.adapters if a.state is AdapterState.VERIFIED}


def run(world: World, seconds: int) -> None:
    for _ in range(seconds):
        world.step()


def test_a_server_that_refuses_its_input_stalls_the_base_and_what_is_served_stays(world: TroubledWorld) -> None:
    before = selected(world)
    world.troubled["v2"] = REFUSES
    wish(world, "v2")
    run(world, 30)
    _, reason, message = condition(world, c.STALLED)
    assert reason == c.SERVING_FAILED
    assert message.startswith("0 of 1 pods of v2 are ready; base-")
    assert message.endswith("Error (exit code 64): readapt: BadConfig: no such architecture")
    assert condition(world, c.READY)[0] == "True"
    assert (selected(world), verified(world)) == (before, {"a"})
    assert lint(world.kube.of("BaseModel")["base"]) == []


def test_a_wish_that_is_changed_back_recovers_from_a_server_that_refuses(world: TroubledWorld) -> None:
    world.troubled["v2"] = REFUSES
    wish(world, "v2")
    run(world, 30)
    wish(world, "v1")
    world.settle()
    assert condition(world, c.STALLED) == ("", "", "")
    assert condition(world, c.UP_TO_DATE)[0] == "True"
    assert {n for n, d in world.kube.of("Deployment").items() if d["spec"]["replicas"]} == {f"base-{selected(world)}"}


@pytest.mark.parametrize(
    ("trouble", "told"),
    [(CRASHES, "Error (exit code 70): KeyError: 'x'"), (NO_IMAGE, "ErrImagePull: no such tag")],
    ids=["crashes", "no image"],
)
def test_other_troubles_are_told_while_they_are_waited_out(world: TroubledWorld, trouble: Doc, told: str) -> None:
    world.troubled["v2"] = trouble
    wish(world, "v2")
    run(world, 30)
    assert condition(world, c.STALLED) == ("", "", "")
    _, reason, message = condition(world, c.RECONCILING)
    assert reason == c.ROLLING_OUT
    assert message.endswith(told)
    world.troubled.clear()
    world.settle()
    assert condition(world, c.UP_TO_DATE)[0] == "True"


def test_the_first_pods_tell_their_troubles_too() -> None:
    with TroubledWorld() as world:
        world.troubled["v1"] = REFUSES
        world.kube.put(base_model())
        run(world, 20)
        assert condition(world, c.STALLED)[1] == c.SERVING_FAILED
        assert condition(world, c.READY)[:2] == ("False", c.SERVING_FAILED)


def test_an_adapter_named_like_its_base_stalls_alone(world: TroubledWorld) -> None:
    world.kube.put(lora_adapter("late", servedName="base"))
    world.settle()
    assert condition(world, c.STALLED, "LoRAAdapter", "late")[1:] == (
        c.NAME_CONFLICT,
        "the base itself is served as 'base'",
    )
    wish(world, "v2")
    world.settle()
    assert world.kube.of("BaseModel")["base"]["status"]["version"] == "v2"
    assert verified(world) == {"a"}
    assert condition(world, c.READY, "LoRAAdapter", "a")[0] == "True"


def stored_sets(world: World) -> list[str]:
    marked = {n: m["metadata"].get("labels", {}) for n, m in world.kube.of("ConfigMap").items()}
    return [name for name, marks in marked.items() if marks.get(labels.REVISION) == selected(world)]


def test_a_set_that_is_lost_is_written_above_what_its_pods_know(world: TroubledWorld) -> None:
    known = max(s.sequence for s in world.pods.states.values())
    for name in stored_sets(world):
        world.kube.remove("ConfigMap", name)
    world.kube.put(lora_adapter("late"))
    world.settle()
    assert all(s.sequence > known for s in world.pods.states.values())
    assert verified(world) == {"a", "late"}


def test_a_set_that_was_brought_back_from_earlier_is_written_again(world: TroubledWorld) -> None:
    (name,) = stored_sets(world)
    earlier: Any = dict(world.kube.of("ConfigMap")[name]["data"])
    world.kube.put(lora_adapter("late"))
    world.settle()
    known = max(s.sequence for s in world.pods.states.values())
    world.kube.change("ConfigMap", name, data=earlier)
    world.settle()
    assert all(s.sequence > known for s in world.pods.states.values())
    assert verified(world) == {"a", "late"}


def replicas(world: World, revision: str) -> int:
    return int(world.kube.of("Deployment")[f"base-{revision}"]["spec"]["replicas"])


def marks(world: World, revision: str) -> dict[str, str]:
    return dict(world.kube.of("Deployment")[f"base-{revision}"]["metadata"]["annotations"])


def test_a_ready_pod_that_does_not_answer_is_waited_for_no_longer_than_the_limit(world: TroubledWorld) -> None:
    before = selected(world)
    (old,) = world.pods.states
    wish(world, "v2")
    while selected(world) == before:
        world.step()
    world.pods.unreachable.add(old)
    started = world.time
    while replicas(world, before) == 1:
        world.step()
        if world.time - started == 300:
            world.restart()  # the clock is not the operator's memory
        assert world.time - started < DRAIN_LIMIT_S + 60
    assert world.time - started > DRAIN_LIMIT_S
    world.settle()
    assert labels.RETIRED_AT not in marks(world, before)
    assert condition(world, c.UP_TO_DATE)[0] == "True"


def test_a_wish_that_comes_back_ends_the_drain_and_its_clock(world: TroubledWorld) -> None:
    before = selected(world)
    (old,) = world.pods.states
    world.pods.states[old] = world.pods.states[old].model_copy(update={"connections": 1})
    wish(world, "v2")
    while labels.RETIRED_AT not in marks(world, before):
        world.step()
    wish(world, "v1")
    world.settle()
    assert selected(world) == before
    assert labels.RETIRED_AT not in marks(world, before)
