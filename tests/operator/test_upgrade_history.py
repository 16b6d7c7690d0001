"""The life of a base and its adapters, second by second, in a cluster of virtual time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from readapt_api import conditions as c
from readapt_api import labels
from readapt_api.digest import digest_of
from readapt_api.jobs import AdaptRequest, FetchRequest
from readapt_api.serving import AdapterState
from readapt_operator.kube.errors import Unavailable
from readapt_operator.kube.resources import Doc
from readapt_operator.loop import PassFailed
from readapt_testing.fake_kube import Crash
from readapt_testing.fake_world import (
    World,
    adapted_variant,
    base_model,
    checkpoint,
    content,
    lora_adapter,
    native_variant,
)
from readapt_testing.status_lint import lint

V1, V2 = content("pvc://models/v1"), content("pvc://models/v2")
A1 = native_variant("pvc://adapters/a", V1)
A2 = adapted_variant(A1, V2)
B1 = digest_of({"extract": content("pvc://checkpoints/b")})
B2 = adapted_variant(B1, V2)


@pytest.fixture
def empty() -> Iterator[World]:
    with World() as world:
        yield world


@pytest.fixture
def world(empty: World) -> World:
    """v1 is served with a given adapter and an extracted one."""
    empty.kube.put(base_model())
    empty.kube.put(lora_adapter("a"))
    empty.kube.put(lora_adapter("b", checkpoint("b")))
    empty.settle()
    return empty


def wish(world: World, version: str) -> None:
    world.kube.change("BaseModel", "base", spec={"version": version})


def condition(world: World, kind: str, of: str = "BaseModel", name: str = "base") -> tuple[str, str]:
    """(status, reason)."""
    status = world.kube.of(of)[name].get("status", {})
    found = next((x for x in status.get("conditions", []) if x["type"] == kind), None)
    return (found["status"], found["reason"]) if found else ("", "")


def selected(world: World) -> str:
    return str(world.kube.of("Service")["base"]["spec"]["selector"][labels.REVISION])


def served(world: World) -> dict[str, str]:
    """served name -> digest, as the pods of the selected revision hold and have verified it."""
    pods = [p for p in world.kube.of("Pod").values() if p["metadata"]["labels"].get(labels.REVISION) == selected(world)]
    (state,) = [world.pods.states[p["status"]["podIP"]] for p in pods]
    return {a.name: a.digest for a in state.adapters if a.state is AdapterState.VERIFIED}


def complaints(world: World) -> list[str]:
    return [text for kind in ("BaseModel", "LoRAAdapter") for o in world.kube.of(kind).values() for text in lint(o)]


def test_the_base_is_served_at_once_and_adapters_join(empty: World) -> None:
    world = empty
    world.kube.put(base_model())
    world.kube.put(lora_adapter("a"))
    world.kube.put(lora_adapter("b", checkpoint("b")))
    joined: list[frozenset[str]] = []
    for _ in range(15):
        world.step()
        if world.pods.states:
            names = frozenset(served(world))
            joined += [names] if not joined or joined[-1] != names else []
    assert joined[0] < joined[-1] == {"a", "b"}
    assert served(world) == {"a": A1, "b": B1}
    assert len(world.kube.of("Deployment")) == 1


def test_an_upgrade_carries_every_adapter_and_ends_up_to_date(world: World) -> None:
    wish(world, "v2")
    world.settle()
    assert served(world) == {"a": A2, "b": B2}
    status = world.kube.of("BaseModel")["base"]["status"]
    assert (status["version"], status["adaptersReady"], status["readyReplicas"]) == ("v2", "2/2", 1)
    assert status["upgrade"]["fromVersion"] == "v1"
    assert status["upgrade"]["finishedAt"] > status["upgrade"]["startedAt"]
    assert condition(world, c.UP_TO_DATE) == ("True", c.VERSION_SERVED)
    assert complaints(world) == []


def test_up_to_date_is_false_in_the_first_pass_after_the_wish_and_true_only_at_the_end(world: World) -> None:
    wish(world, "v2")
    world.reconcile()
    assert condition(world, c.UP_TO_DATE)[0] == "False"
    found = world.kube.of("BaseModel")["base"]
    assert found["status"]["observedGeneration"] == found["metadata"]["generation"]
    while condition(world, c.UP_TO_DATE)[0] == "False":
        assert condition(world, c.READY) == ("True", c.SERVING)
        assert complaints(world) == []
        world.step()
        assert world.time < 100
    assert world.kube.of("BaseModel")["base"]["status"]["version"] == "v2"
    old = [d for n, d in world.kube.of("Deployment").items() if not n.endswith(selected(world))]
    assert [d["spec"]["replicas"] for d in old] == [0]


def test_the_switch_waits_until_every_pod_has_verified_the_whole_set(world: World) -> None:
    before = selected(world)
    world.kube.change("BaseModel", "base", spec={"version": "v2", "serving": {"replicas": 2}})
    seen_partly = False
    for _ in range(40):
        world.reconcile()
        after = selected(world)
        if after != before:
            break
        new = [s for s in world.pods.states.values() if s.revision != before]
        seen_partly |= bool(new) and any(a.state is AdapterState.REGISTERED for s in new for a in s.adapters)
        world.move()
    assert after != before
    new = [s for s in world.pods.states.values() if s.revision == after]
    assert len(new) == 2
    assert all(a.state is AdapterState.VERIFIED for s in new for a in s.adapters)


def test_old_pods_are_drained_only_when_no_endpoint_lists_them_and_kept_while_clients_are_connected(
    world: World,
) -> None:
    before = selected(world)
    (old,) = world.pods.states
    world.pods.states[old] = world.pods.states[old].model_copy(update={"connections": 1})
    wish(world, "v2")
    switched_at = drained_at = None
    for _ in range(60):
        world.step()
        if switched_at is None and selected(world) != before:
            switched_at = world.time
        if drained_at is None and world.pods.drained:
            drained_at = world.time
    assert switched_at is not None
    assert drained_at is not None
    assert drained_at - switched_at >= 3.0
    assert world.kube.of("Deployment")[f"base-{before}"]["spec"]["replicas"] == 1
    assert condition(world, c.UP_TO_DATE) == ("False", c.DRAINING)
    world.pods.states[old] = world.pods.states[old].model_copy(update={"connections": 0})
    world.settle()
    assert world.kube.of("Deployment")[f"base-{before}"]["spec"]["replicas"] == 0
    assert condition(world, c.UP_TO_DATE)[0] == "True"


def test_a_client_that_never_leaves_is_waited_for_ten_minutes(world: World) -> None:
    before = selected(world)
    (old,) = world.pods.states
    wish(world, "v2")
    while selected(world) == before:
        world.step()
    world.pods.states[old] = world.pods.states[old].model_copy(update={"connections": 1})
    started = world.time
    while world.kube.of("Deployment")[f"base-{before}"]["spec"]["replicas"] == 1:
        world.step()
        assert world.time - started < 700
    assert world.time - started > 600


def test_rolling_back_runs_no_job_and_serves_the_old_variants(world: World) -> None:
    wish(world, "v2")
    world.settle()
    jobs = set(world.kube.of("Job"))
    wish(world, "v1")
    world.settle()
    assert set(world.kube.of("Job")) == jobs
    assert served(world) == {"a": A1, "b": B1}
    assert world.kube.of("BaseModel")["base"]["status"]["version"] == "v1"
    wish(world, "v2")
    world.settle()
    assert set(world.kube.of("Job")) == jobs
    assert served(world) == {"a": A2, "b": B2}


def test_a_settled_base_is_left_alone(world: World) -> None:
    world.kube.writes.clear()
    for _ in range(300):
        world.step()
    assert world.kube.writes == []


def test_a_wish_that_changes_half_way_leaves_no_pods_behind(world: World) -> None:
    served_before = selected(world)
    wish(world, "v2")
    while len(world.kube.of("Deployment")) < 2:
        world.step()
    wish(world, "v3")
    world.settle()
    assert world.kube.of("BaseModel")["base"]["status"]["version"] == "v3"
    running = {n for n, d in world.kube.of("Deployment").items() if d["spec"]["replicas"]}
    assert running == {f"base-{selected(world)}"}
    assert selected(world) != served_before


def test_coming_back_while_the_old_pods_drain_replaces_them(world: World) -> None:
    before = selected(world)
    (old,) = world.pods.states
    wish(world, "v2")
    while not world.pods.drained:
        world.pods.states[old] = world.pods.states[old].model_copy(update={"connections": 1})
        world.step()
    wish(world, "v1")
    world.settle()
    assert selected(world) == before
    assert old not in world.pods.states
    assert served(world) == {"a": A1, "b": B1}
    assert condition(world, c.UP_TO_DATE)[0] == "True"


def test_three_old_revisions_are_kept(world: World) -> None:
    for i in range(6):
        world.kube.change("BaseModel", "base", spec={"serving": {"maxModelLen": 1000 + i}})
        world.settle()
    assert len(world.kube.of("Deployment")) == 4
    revisions = {d["metadata"]["labels"][labels.REVISION] for d in world.kube.of("Deployment").values()}
    sets = [m["metadata"]["labels"].get(labels.REVISION) for m in world.kube.of("ConfigMap").values()]
    assert {s for s in sets if s} == revisions


def test_a_set_is_not_left_behind_by_a_wish_that_is_taken_back_before_its_deployment_is_there(world: World) -> None:
    """Killed between the two writes, and the wish has changed when the next operator looks."""

    def after_the_set(when: str) -> None:
        if when == "after" and world.kube.writes[-1][:2] == ("create", "ConfigMap") and len(set_revisions(world)) == 2:
            world.kube.around_write = lambda when: None
            raise Crash

    world.kube.around_write = after_the_set
    wish(world, "v2")
    with pytest.raises(Crash):
        world.settle()
    assert len(world.kube.of("Deployment")) == 1
    wish(world, "v1")
    world.restart()
    world.settle()
    assert set_revisions(world) == {selected(world)}


def test_the_set_of_an_old_revision_goes_with_its_deployment_also_when_a_delete_fails(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[str] = []
    delete = world.kube.delete

    async def refuse_first_set(body: Doc) -> None:
        if body["kind"] == "ConfigMap" and not refused:
            refused.append(body["metadata"]["name"])
            raise Unavailable("500 InternalError")
        await delete(body)

    monkeypatch.setattr(world.kube, "delete", refuse_first_set)
    for i in range(6):
        world.kube.change("BaseModel", "base", spec={"serving": {"maxModelLen": 1000 + i}})
        try:
            world.settle()
        except PassFailed:
            world.settle()
    revisions = {d["metadata"]["labels"][labels.REVISION] for d in world.kube.of("Deployment").values()}
    assert refused
    assert len(revisions) == 4
    assert set_revisions(world) == revisions


def set_revisions(world: World) -> set[str]:
    marks = (m["metadata"]["labels"] for m in world.kube.of("ConfigMap").values())
    return {m[labels.REVISION] for m in marks if labels.REVISION in m}


def test_a_new_image_is_a_new_revision_of_the_same_set_without_a_job(world: World) -> None:
    jobs, before, held = set(world.kube.of("Job")), selected(world), served(world)
    world.image = "runtime:2"
    world.restart()
    world.settle()
    assert selected(world) != before
    assert (set(world.kube.of("Job")), served(world)) == (jobs, held)


def test_suspended_nothing_starts_and_nothing_switches(world: World) -> None:
    before = selected(world)
    world.kube.change("BaseModel", "base", spec={"suspend": True, "version": "v2"})
    jobs = set(world.kube.of("Job"))
    world.settle()
    assert (selected(world), set(world.kube.of("Job"))) == (before, jobs)
    assert condition(world, c.UP_TO_DATE) == ("False", c.SUSPENDED)
    assert condition(world, c.STALLED) == condition(world, c.RECONCILING) == ("", "")
    world.kube.change("BaseModel", "base", spec={"suspend": False})
    world.settle()
    assert served(world) == {"a": A2, "b": B2}


def test_adapters_come_and_go_without_touching_pods(world: World) -> None:
    pods = set(world.kube.of("Pod"))
    world.kube.put(lora_adapter("late"))
    world.settle()
    assert served(world)["late"] == native_variant("pvc://adapters/late", V1)
    world.kube.remove("LoRAAdapter", "a")
    world.settle()
    assert set(served(world)) == {"b", "late"}
    mine = {n for n in world.kube.of("Pod") if n.startswith("base-") and not n.endswith("-pod")}
    assert mine <= pods
    sequences = {s.sequence for s in world.pods.states.values()}
    assert sequences == {5}  # empty, a, b, late, without a


def test_scaling_touches_replicas_alone(world: World) -> None:
    revision = selected(world)
    world.kube.change("BaseModel", "base", spec={"serving": {"replicas": 3}})
    world.settle()
    assert selected(world) == revision
    assert world.kube.of("BaseModel")["base"]["status"]["replicas"] == 3
    assert world.kube.of("LoRAAdapter")["a"]["status"]["verified"] == "3/3"


def test_what_a_repair_cost_is_on_record(world: World) -> None:
    wish(world, "v2")
    world.settle()
    cell = next(v for v in world.kube.of("LoRAAdapter")["a"]["status"]["variants"] if v["baseVersion"] == "v2")
    scores = (cell["score"], cell["reference"], cell["copyScore"])
    assert (cell["origin"], *scores) == ("ReLoRA", "0.9100", "0.9200", "0.8000")
    assert (cell["metric"], cell["interval"]) == ("Accuracy", "[-0.0200, +0.0100]")
    assert (cell["repairSeconds"], cell["retention"]) == (12, "0.9500")
    assert 0 < cell["readySeconds"] < 30


def test_the_drift_of_a_move_is_on_record_with_its_page(world: World) -> None:
    wish(world, "v2")
    world.settle()
    (drift,) = world.kube.of("BaseModel")["base"]["status"]["drifts"]
    assert (drift["oldDigest"], drift["newDigest"], drift["relativeNorm"]) == (V1, V2, "0.0123")
    assert drift["report"] == "results/drift.report.html"


def test_nothing_is_asked_of_a_job_that_another_job_has_not_answered(world: World) -> None:
    wish(world, "v2")
    world.settle()
    kinds = [r.kind.value for r in world.requests if not isinstance(r, FetchRequest)]
    assert kinds == ["extract", "drift", "adapt", "adapt"]
    requests = [r for r in world.requests if isinstance(r, AdaptRequest)]
    assert {(r.old_base, r.new_base) for r in requests} == {(V1, V2)}
    references: set[Any] = {r.items[0].reference for r in requests}
    assert references == {A1, B1}
