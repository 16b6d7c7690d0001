"""The user changes what an adapter is made of while it is served: nobody meets a gap, and no pass trips over it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from readapt_api import conditions as c
from readapt_api import labels
from readapt_api.artifacts import Origin
from readapt_api.digest import digest_of
from readapt_api.jobs import AdaptRequest, FetchRequest, Summary
from readapt_api.serving import SHARD_FILE, AdapterState, SetShard
from readapt_operator.decide import adapter as adapter_stages
from readapt_operator.decide.plan import Verdict
from readapt_testing.fake_world import (
    World,
    adapted_variant,
    base_model,
    checkpoint,
    content,
    lora_adapter,
    native_variant,
    refused,
    succeed,
)
from readapt_testing.status_lint import lint

NOTHING: dict[str, Verdict] = {}
V1, V2 = content("pvc://models/v1"), content("pvc://models/v2")
NEW = digest_of({"content": "the files that replaced the first ones"})
NEW_NATIVE = digest_of({"variant": NEW, "base": V1})


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        yield world
        assert [text for k in ("BaseModel", "LoRAAdapter") for o in world.kube.of(k).values() for text in lint(o)] == []


def start(world: World, *adapters: Any, version: str = "v1") -> None:
    world.kube.put(base_model())
    for adapter in adapters or (lora_adapter("a"), lora_adapter("b")):
        world.kube.put(adapter)
    world.settle()
    if version != "v1":
        world.kube.change("BaseModel", "base", spec={"version": version})
        world.settle()


def replaced(uri: str) -> Callable[[Any], Summary | int]:
    """The world after somebody wrote other files to a uri."""

    def work(request: Any) -> Summary | int:
        summary = succeed(request)
        if isinstance(request, FetchRequest) and request.sources[0].uri == uri and summary.fetch is not None:
            variant = NEW_NATIVE if summary.fetch.variant else None
            changed = summary.fetch.model_copy(update={"digest": NEW, "variant": variant})
            return summary.model_copy(update={"fetch": changed})
        return summary

    return work


def pin(world: World, kind: str = "adapter") -> None:
    world.kube.change("LoRAAdapter", "a", spec={"source": {kind: {"digest": NEW}}})


def condition(world: World, kind: str, of: str = "LoRAAdapter", name: str = "a") -> tuple[str, str]:
    """(status, reason)."""
    listed = world.kube.of(of)[name]["status"]["conditions"]
    found = next((x for x in listed if x["type"] == kind), {"status": "", "reason": ""})
    return found["status"], found["reason"]


def served(world: World, name: str = "a") -> str | None:
    """Digest that every pod of the selected revision has verified for a name."""
    revision = world.kube.of("Service")["base"]["spec"]["selector"][labels.REVISION]
    states = [s for s in world.pods.states.values() if s.revision == revision]
    found = {
        next((a.digest for a in s.adapters if a.name == name and a.state is AdapterState.VERIFIED), None)
        for s in states
    }
    (digest,) = found
    return digest


def ways(world: World, seconds: int) -> list[str | None]:
    """The digests that were served for the adapter one after the other; None where there was a gap."""
    met = [served(world)]
    for _ in range(seconds):
        world.step()
        met += [served(world)] if served(world) != met[-1] else []
    return met


def origins(world: World) -> set[tuple[str, str]]:
    variants = world.kube.of("LoRAAdapter")["a"]["status"]["variants"]
    return {(v["baseVersion"], v["origin"]) for v in variants if v.get("origin")}


def test_files_that_are_replaced_and_pinned_after_an_upgrade_are_carried_over(world: World) -> None:
    start(world, version="v2")
    world.work = replaced("pvc://adapters/a")
    before = served(world)
    pin(world)
    assert ways(world, 30) == [before, adapted_variant(NEW_NATIVE, V2)]
    assert condition(world, c.UP_TO_DATE) == ("True", c.GATE_PASSED)
    assert condition(world, c.UP_TO_DATE, "BaseModel", "base")[0] == "True"


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_checkpoint_that_is_replaced_is_served_until_the_new_one_passes(world: World, version: str) -> None:
    start(world, lora_adapter("a", checkpoint("a")), version=version)
    world.work = replaced("pvc://checkpoints/a")
    before, extract = served(world), digest_of({"extract": NEW})
    pin(world, "checkpoint")
    assert ways(world, 40) == [before, extract if version == "v1" else adapted_variant(extract, V2)]
    assert condition(world, c.UP_TO_DATE)[0] == "True"


def test_a_replacement_that_fails_its_gate_leaves_the_old_variant_served(world: World) -> None:
    start(world, version="v2")
    change = replaced("pvc://adapters/a")
    world.work = lambda r: refused(r) if isinstance(r, AdaptRequest) else change(r)
    before = served(world)
    pin(world)
    assert ways(world, 40) == [before]
    assert condition(world, c.STALLED) == ("True", c.GATE_FAILED)
    assert condition(world, c.READY) == ("True", c.VERIFIED)
    for name in [n for n in world.kube.of("ConfigMap") if "-set-" in n]:
        world.kube.remove("ConfigMap", name)
    assert ways(world, 20) == [before]


def test_a_base_version_that_is_corrected_to_the_wished_one_makes_the_adapter_native_there(world: World) -> None:
    """CEL refuses it at apply; an object of an older schema may have had it."""
    start(world, lora_adapter("a"))
    world.work = lambda r: refused(r) if isinstance(r, AdaptRequest) else succeed(r)
    world.kube.change("BaseModel", "base", spec={"version": "v2"})
    world.settle()
    assert condition(world, c.STALLED) == ("True", c.GATE_FAILED)
    drifts = [n for n in world.kube.of("Job") if "-drift-" in n]
    world.kube.change("LoRAAdapter", "a", spec={"source": {"adapter": {"baseVersion": "v2"}}})
    world.settle()
    assert served(world) == native_variant("pvc://adapters/a", V2)
    assert ("v2", Origin.NATIVE) in origins(world)
    assert [n for n in world.kube.of("Job") if "-drift-" in n] == drifts


def test_a_bug_in_the_decision_about_one_adapter_is_told_there_and_costs_nobody_else(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start(world)

    def trips(at: adapter_stages.AdapterPass) -> adapter_stages.AdapterPass:
        return at if at.adapter.metadata.name == "b" else at.halt(NOTHING["missing"])

    with monkeypatch.context() as broken, caplog.at_level(logging.ERROR):
        broken.setattr(adapter_stages, "MOVE", (trips, *adapter_stages.MOVE))
        world.kube.change("BaseModel", "base", spec={"version": "v2"})
        world.settle()
        assert condition(world, c.STALLED) == ("True", c.BUG)
        assert condition(world, c.STALLED, "BaseModel", "base") == ("True", c.STRAGGLERS_BLOCK)
        assert condition(world, c.READY) == ("True", c.VERIFIED)
        assert condition(world, c.UP_TO_DATE, name="b") == ("True", c.GATE_PASSED)
        assert world.loop.bugs > 0
        assert "KeyError: 'missing'" in caplog.text
    world.settle()
    assert served(world) == adapted_variant(native_variant("pvc://adapters/a", V1), V2)


def test_how_pods_treat_an_adapter_reaches_the_set_without_a_job_or_another_revision(world: World) -> None:
    start(world)
    before = set(world.kube.of("Job")), set(world.kube.of("Deployment"))
    world.kube.change("LoRAAdapter", "a", spec={"serving": {"preload": True, "priority": 7}})
    world.settle()
    shards = [m["data"][SHARD_FILE] for m in world.kube.of("ConfigMap").values() if SHARD_FILE in m["data"]]
    adapters = {a.name: a for text in shards for a in SetShard.model_validate_json(text).adapters}
    assert (adapters["a"].preload, adapters["a"].priority) == (True, 7)
    assert (adapters["b"].preload, adapters["b"].priority) == (None, None)
    assert (set(world.kube.of("Job")), set(world.kube.of("Deployment"))) == before
    assert condition(world, c.READY) == ("True", "Verified")
