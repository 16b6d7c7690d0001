"""Objects of another version of Readapt, as after Readapt itself was rolled back: what is served stays served.

They keep values that the older operator does not know: the API server validates what is written, not what is there.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from readapt_api import conditions as c
from readapt_api import labels
from readapt_api.serving import AdapterState
from readapt_operator.observed import UnreadableBase
from readapt_testing.fake_world import World, base_model, lora_adapter
from readapt_testing.status_lint import lint


@pytest.fixture
def world() -> Iterator[World]:
    """v1 is served with two adapters."""
    with World() as world:
        world.kube.put(base_model())
        world.kube.put(lora_adapter("a"))
        world.kube.put(lora_adapter("b"))
        world.settle()
        yield world
        assert [text for k in ("BaseModel", "LoRAAdapter") for o in world.kube.of(k).values() for text in lint(o)] == []


def gate_by(world: World, metric: str) -> None:
    world.kube.change("LoRAAdapter", "a", spec={"gate": {"metric": metric}})
    world.settle()


def selected(world: World) -> str:
    return str(world.kube.of("Service")["base"]["spec"]["selector"][labels.REVISION])


def served(world: World) -> dict[str, str]:
    """served name -> digest, as the pods of the selected revision have verified it."""
    pods = [p for p in world.kube.of("Pod").values() if p["metadata"]["labels"].get(labels.REVISION) == selected(world)]
    (state,) = [world.pods.states[p["status"]["podIP"]] for p in pods]
    return {a.name: a.digest for a in state.adapters if a.state is AdapterState.VERIFIED}


def condition(world: World, kind: str, of: str = "BaseModel", name: str = "base") -> tuple[str, str]:
    """(status, reason)."""
    listed = world.kube.of(of)[name]["status"]["conditions"]
    found = next((x for x in listed if x["type"] == kind), {"status": "", "reason": ""})
    return found["status"], found["reason"]


def test_an_adapter_of_another_version_of_readapt_keeps_what_it_serves_and_is_not_left_behind(world: World) -> None:
    before, revision = served(world), selected(world)
    gate_by(world, "OfTheFuture")
    assert served(world) == before
    assert condition(world, c.STALLED) == ("True", c.UNREADABLE)
    assert condition(world, c.READY)[0] == "True"

    world.kube.change("BaseModel", "base", spec={"version": "v2"})
    world.settle()
    assert (selected(world), served(world)) == (revision, before)
    assert condition(world, c.STALLED) == ("True", c.STRAGGLERS_BLOCK)

    assert condition(world, c.STALLED, "LoRAAdapter", "a") == ("True", c.UNREADABLE)
    gate_by(world, "Accuracy")
    assert condition(world, c.STALLED, "LoRAAdapter", "a") == ("", "")
    assert set(served(world)) == set(before)
    assert world.kube.of("BaseModel")["base"]["status"]["version"] == "v2"
    assert condition(world, c.STALLED) == ("", "")


def test_the_name_of_an_adapter_that_cannot_be_read_is_not_free(world: World) -> None:
    before = served(world)
    gate_by(world, "OfTheFuture")
    world.kube.put(lora_adapter("late", servedName="a"))
    world.settle()
    assert served(world) == before
    assert condition(world, c.STALLED, "LoRAAdapter", "late") == ("True", c.NAME_CONFLICT)
    gate_by(world, "Accuracy")
    assert served(world) == before


def test_a_younger_claim_that_cannot_be_read_takes_no_name(world: World) -> None:
    before = served(world)
    world.kube.put(lora_adapter("late", servedName="a", gate={"metric": "OfTheFuture"}))
    world.settle()
    assert served(world) == before
    assert condition(world, c.READY, "LoRAAdapter", "a")[0] == "True"
    world.kube.change("BaseModel", "base", spec={"version": "v2"})
    world.settle()
    assert world.kube.of("BaseModel")["base"]["status"]["version"] == "v2"
    assert served(world).keys() == before.keys()
    world.kube.remove("LoRAAdapter", "late")
    world.settle()


def test_an_adapter_that_cannot_be_read_keeps_its_place_when_its_set_is_lost(world: World) -> None:
    before = served(world)
    gate_by(world, "OfTheFuture")
    world.kube.remove("ConfigMap", f"base-{selected(world)}-set-0")
    world.settle()
    assert served(world) == before
    gate_by(world, "Accuracy")
    assert served(world) == before


def test_a_base_of_another_version_of_readapt_is_told_so_and_stays_as_it_is(world: World) -> None:
    before, revision, written = served(world), selected(world), len(world.kube.writes)
    world.kube.change("BaseModel", "base", spec={"version": "v2", "serving": {"dtype": "OfTheFuture"}})
    for _ in range(3):
        with pytest.raises(UnreadableBase, match=r"spec\.serving\.dtype"):
            world.settle()
    assert condition(world, c.STALLED) == ("True", c.UNREADABLE)
    assert world.kube.writes[written:] == [("status", "BaseModel", "base")], "once, and nothing else"
    assert (selected(world), served(world)) == (revision, before)

    world.kube.change("BaseModel", "base", spec={"serving": {"dtype": "Auto"}})
    world.settle()
    assert condition(world, c.STALLED) == ("", "")
    assert world.kube.of("BaseModel")["base"]["status"]["version"] == "v2"
