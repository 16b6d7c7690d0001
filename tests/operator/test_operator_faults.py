"""What goes wrong, and what then happens: the promises of design section 10 that the operator keeps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from readapt_api import conditions as c
from readapt_api import labels
from readapt_api.digest import digest_of
from readapt_api.jobs import AdaptRequest, ExtractRequest, FetchRequest, FetchRole, JobKind, Summary
from readapt_api.serving import AdapterState
from readapt_operator.loop import PassFailed
from readapt_testing.fake_world import (
    World,
    base_model,
    checkpoint,
    content,
    lora_adapter,
    native_variant,
    refused,
    succeed,
)
from readapt_testing.status_lint import lint

V1 = content("pvc://models/v1")


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        yield world
        assert [text for k in ("BaseModel", "LoRAAdapter") for o in world.kube.of(k).values() for text in lint(o)] == []


def start(world: World, *names: str, **spec: Any) -> None:
    world.kube.put(base_model(**spec))
    for name in names or ("a",):
        world.kube.put(lora_adapter(name))
    world.settle()


def condition(world: World, kind: str, of: str = "BaseModel", name: str = "base") -> tuple[str, str, str]:
    """(status, reason, message)."""
    listed = world.kube.of(of)[name]["status"]["conditions"]
    found = next((x for x in listed if x["type"] == kind), {"status": "", "reason": "", "message": ""})
    return found["status"], found["reason"], found["message"]


def wish(world: World, version: str) -> None:
    world.kube.change("BaseModel", "base", spec={"version": version})


def retry(world: World, kind: str, name: str, value: str) -> None:
    world.kube.change(kind, name, metadata={"annotations": {labels.RETRY: value}})


def served_version(world: World) -> str:
    return str(world.kube.of("BaseModel")["base"]["status"]["version"])


def fails_for(uri: str, reason: str = "SourceMissing", text: str = "no such file") -> Any:
    """Work that refuses one source."""

    def work(request: Any) -> Summary | int:
        if isinstance(request, FetchRequest) and any(s.uri == uri for s in request.sources):
            return Summary(kind=JobKind.FETCH, ok=False, reason=reason, message=text)
        return succeed(request)

    return work


def test_a_version_that_cannot_be_fetched_stalls_with_the_message_while_the_old_set_serves(world: World) -> None:
    start(world)
    world.work = fails_for("pvc://models/v2")
    wish(world, "v2")
    world.settle()
    status, reason, message = condition(world, c.STALLED)
    assert (status, reason) == ("True", c.SOURCE_FAILED)
    assert "v2" in message
    assert "no such file" in message
    assert condition(world, c.READY)[0] == "True"
    assert served_version(world) == "v1"
    assert condition(world, c.READY, "LoRAAdapter", "a")[0] == "True"
    wish(world, "v1")
    world.settle()
    assert condition(world, c.UP_TO_DATE)[0] == "True"


@pytest.mark.parametrize("wished", ["v9", "v2"], ids=["never listed", "listed once"])
def test_a_version_that_is_not_listed_stalls_while_the_old_set_serves(world: World, wished: str) -> None:
    """CEL refuses it at apply; an older API server's object may have it."""
    start(world)
    wish(world, "v2")
    world.settle()
    wish(world, "v1")
    world.settle()
    versions = [{"name": v, "source": {"uri": f"pvc://models/{v}"}} for v in ("v1", "v3")]
    world.kube.change("BaseModel", "base", spec={"version": wished, "versions": versions})
    world.settle()
    assert condition(world, c.STALLED)[:2] == ("True", c.UNKNOWN_VERSION)
    assert condition(world, c.STALLED, "LoRAAdapter", "a")[0] == ""
    assert condition(world, c.READY, "LoRAAdapter", "a")[0] == "True"
    assert served_version(world) == "v1"


def test_a_refused_source_is_tried_again_only_when_asked(world: World) -> None:
    world.work = fails_for("pvc://adapters/a")
    start(world)
    tried = len(world.requests)
    for _ in range(60):
        world.step()
    assert len(world.requests) == tried
    world.work = succeed
    retry(world, "LoRAAdapter", "a", "once more")
    world.settle()
    assert condition(world, c.READY, "LoRAAdapter", "a")[0] == "True"


def test_scaling_does_not_retry_what_stalled(world: World) -> None:
    world.work = fails_for("pvc://adapters/a")
    start(world)
    tried = len(world.requests)
    world.kube.change("BaseModel", "base", spec={"serving": {"replicas": 2}})
    world.settle()
    assert len(world.requests) == tried


def test_one_bad_adapter_leaves_its_neighbours_alone(world: World) -> None:
    world.work = fails_for("pvc://adapters/bad", "BadWeights", "NaN in q_proj")
    start(world, "bad", "good")
    assert condition(world, c.READY, "LoRAAdapter", "good")[0] == "True"
    assert condition(world, c.STALLED, "LoRAAdapter", "bad")[1] == c.SOURCE_FAILED
    assert condition(world, c.READY)[0] == "True"
    assert condition(world, c.UP_TO_DATE)[:2] == ("False", c.SOURCE_FAILED)
    (sample,) = world.kube.of("BaseModel")["base"]["status"]["failures"]
    assert (sample["adapter"], "NaN in q_proj" in sample["message"]) == ("bad", True)


def test_a_straggler_that_is_served_blocks_the_switch_until_its_gate_passes(world: World) -> None:
    start(world, "a", "b")
    world.work = lambda r: refused(r) if isinstance(r, AdaptRequest) and r.items[0].name == "a" else succeed(r)
    wish(world, "v2")
    world.settle()
    assert served_version(world) == "v1"
    assert condition(world, c.STALLED)[1] == c.STRAGGLERS_BLOCK
    assert condition(world, c.STALLED, "LoRAAdapter", "a")[:2] == ("True", c.GATE_FAILED)
    assert condition(world, c.READY, "LoRAAdapter", "a")[0] == "True"
    assert len(world.kube.of("Deployment")) == 1
    world.work = succeed
    world.kube.change("LoRAAdapter", "a", spec={"gate": {"maxRegression": "0.3"}})
    world.settle()
    assert served_version(world) == "v2"
    assert condition(world, c.STALLED)[0] == ""


@pytest.mark.parametrize("silent", [False, True], ids=["pods answer", "pods are silent"])
def test_a_straggler_blocks_also_while_the_served_set_is_lost(world: World, silent: bool) -> None:
    start(world, "a", "b")
    world.work = lambda r: refused(r) if isinstance(r, AdaptRequest) and r.items[0].name == "a" else succeed(r)
    wish(world, "v2")
    world.settle()
    (lost,) = [n for n in world.kube.of("ConfigMap") if "-set-" in n]
    world.kube.remove("ConfigMap", lost)
    world.restart()  # what pods said earlier is forgotten
    world.pods.unreachable = set(world.pods.states) if silent else set()
    world.step()
    world.pods.unreachable = set()
    world.settle()
    assert condition(world, c.STALLED)[1] == c.STRAGGLERS_BLOCK
    assert len(world.kube.of("Deployment")) == 1


def test_a_verdict_of_the_gate_stands_after_a_restart_and_without_its_job(world: World) -> None:
    start(world)
    world.work = lambda r: refused(r, "GateUndecided") if isinstance(r, AdaptRequest) else succeed(r)
    wish(world, "v2")
    world.settle()
    (job,) = [n for n in world.kube.of("Job") if "-adapt-" in n]
    world.kube.remove("Job", job)
    world.restart()
    world.settle()
    assert not [n for n in world.kube.of("Job") if "-adapt-" in n]
    assert condition(world, c.STALLED, "LoRAAdapter", "a")[1] == c.GATE_UNDECIDED
    retry(world, "LoRAAdapter", "a", "1")
    world.settle()
    assert [n for n in world.kube.of("Job") if "-adapt-" in n]


def test_a_failed_adapter_that_was_never_served_holds_nobody_up(world: World) -> None:
    world.work = fails_for("pvc://adapters/bad")
    start(world, "bad", "good")
    wish(world, "v2")
    world.settle()
    assert served_version(world) == "v2"
    assert condition(world, c.UP_TO_DATE)[0] == "False"


def test_without_data_an_adapter_is_served_but_cannot_move(world: World) -> None:
    world.kube.put(base_model())
    world.kube.put(lora_adapter("a", data=False))
    world.settle()
    assert condition(world, c.READY, "LoRAAdapter", "a")[0] == "True"
    wish(world, "v2")
    world.settle()
    assert condition(world, c.STALLED, "LoRAAdapter", "a")[1] == c.DATA_MISSING
    assert condition(world, c.STALLED)[1] == c.STRAGGLERS_BLOCK
    assert served_version(world) == "v1"


def test_a_checkpoint_without_data_cannot_be_extracted(world: World) -> None:
    world.kube.put(base_model())
    world.kube.put(lora_adapter("b", checkpoint("b"), data=False))
    world.settle()
    assert condition(world, c.STALLED, "LoRAAdapter", "b")[1] == c.DATA_MISSING
    assert not [r for r in world.requests if isinstance(r, ExtractRequest)]


def test_bad_data_is_told_before_an_upgrade_needs_it(world: World) -> None:
    world.work = fails_for("pvc://data/a/train.jsonl", "BadData", "line 3 is not JSON")
    start(world)
    assert condition(world, c.READY, "LoRAAdapter", "a")[0] == "True"
    assert condition(world, c.SOURCE_READY, "LoRAAdapter", "a")[0] == "False"
    assert "line 3" in condition(world, c.STALLED, "LoRAAdapter", "a")[2]
    assert condition(world, c.UP_TO_DATE)[0] == "True"


def test_new_data_is_fetched_and_the_next_repair_uses_it(world: World) -> None:
    start(world)
    before = world.kube.of("LoRAAdapter")["a"]["status"]["dataDigest"]
    changed = {"train": {"uri": "pvc://data/new.jsonl"}, "validation": {"uri": "pvc://data/new-v.jsonl"}}
    world.kube.change("LoRAAdapter", "a", spec={"data": changed})
    world.settle()
    after = world.kube.of("LoRAAdapter")["a"]["status"]["dataDigest"]
    assert after == digest_of({"contents": ["pvc://data/new.jsonl", "pvc://data/new-v.jsonl"]}) != before
    wish(world, "v2")
    world.settle()
    (request,) = [r for r in world.requests if isinstance(r, AdaptRequest)]
    assert request.items[0].data == after


def test_an_unknown_base_version_of_an_adapter_stalls_it_alone(world: World) -> None:
    world.kube.put(base_model())
    world.kube.put(lora_adapter("a", {"adapter": {"uri": "pvc://adapters/a", "baseVersion": "v9"}}))
    world.settle()
    assert condition(world, c.STALLED, "LoRAAdapter", "a")[1] == c.UNKNOWN_VERSION
    assert condition(world, c.READY)[0] == "True"


def test_a_base_that_is_not_there_stalls_its_adapters_until_it_comes(world: World) -> None:
    world.kube.put(lora_adapter("a"))
    world.step()
    assert condition(world, c.STALLED, "LoRAAdapter", "a")[1] == c.BASE_NOT_FOUND
    world.kube.put(base_model())
    world.settle()
    assert condition(world, c.READY, "LoRAAdapter", "a")[0] == "True"
    world.kube.remove("BaseModel", "base")
    world.step()
    assert condition(world, c.STALLED, "LoRAAdapter", "a")[1] == c.BASE_NOT_FOUND
    assert world.kube.of("Deployment") == {}


def test_the_older_claim_of_a_served_name_wins(world: World) -> None:
    world.kube.put(base_model())
    world.kube.put(lora_adapter("old", servedName="intents"))
    world.move()
    world.kube.put(lora_adapter("a-young", servedName="intents"))
    world.settle()
    assert condition(world, c.READY, "LoRAAdapter", "old")[0] == "True"
    assert condition(world, c.STALLED, "LoRAAdapter", "a-young")[1] == c.NAME_CONFLICT
    (state,) = world.pods.states.values()
    assert [(a.name, a.digest) for a in state.adapters] == [("intents", native_variant("pvc://adapters/old", V1))]
    world.kube.remove("LoRAAdapter", "old")
    world.settle()
    assert condition(world, c.READY, "LoRAAdapter", "a-young")[0] == "True"


def test_a_job_that_dies_is_tried_again_up_to_the_limit_and_then_stalls(world: World) -> None:
    tries = 0

    def work(request: Any) -> Summary | int:
        nonlocal tries
        if isinstance(request, FetchRequest) and request.role is FetchRole.ADAPTER:
            tries += 1
            return 137
        return succeed(request)

    world.work = work
    world.kube.put(base_model())
    world.kube.put(lora_adapter("a"))
    world.settle(quiet=45)
    assert tries == 3
    assert condition(world, c.STALLED, "LoRAAdapter", "a")[1] == c.JOB_FAILED


def test_a_lost_termination_message_is_fetched_by_another_attempt(world: World) -> None:
    start(world)
    world.work = lambda r: 0 if isinstance(r, AdaptRequest) else succeed(r)
    wish(world, "v2")
    while not [n for n in world.kube.of("Job") if "-adapt-" in n]:
        world.step()
    world.work = succeed
    world.settle()
    jobs = [j for n, j in world.kube.of("Job").items() if "-adapt-" in n]
    assert sorted(j["metadata"]["annotations"][labels.ATTEMPT] for j in jobs) == ["1", "2"]
    assert served_version(world) == "v2"


@pytest.mark.parametrize("kind", ["Job", "Deployment", "ConfigMap", "Pod"])
def test_a_list_that_is_stale_once_creates_nothing_twice(world: World, kind: str) -> None:
    world.kube.put(base_model())
    world.kube.put(lora_adapter("a"))
    for _ in range(12):
        world.kube.stale[kind] = []
        try:
            world.step()
        except PassFailed:
            world.move()  # a write that met a conflict; the next look is a true one
        world.step()
    world.kube.stale.clear()
    world.settle()
    own = {p: n for p, n in world.kube.creations.items() if p[0] in ("Job", "Deployment", "ConfigMap", "Service")}
    assert set(own.values()) == {1}
    assert condition(world, c.UP_TO_DATE)[0] == "True"


def test_two_operators_at_once_make_every_child_once(world: World) -> None:
    other = World()
    other._runner.close()
    other.kube, other.pods, other._runner = world.kube, world.pods, world._runner
    other.restart()

    def both() -> None:
        for one in (world, other):
            other.time = world.time
            try:
                one.reconcile()
            except PassFailed:
                continue
        world.move()

    world.kube.put(base_model())
    world.kube.put(lora_adapter("a"))
    for version in ("v1", "v2"):
        world.kube.change("BaseModel", "base", spec={"version": version})
        for _ in range(30):
            both()
    own = {p: n for p, n in world.kube.creations.items() if p[0] in ("Job", "Deployment", "ConfigMap", "Service")}
    assert set(own.values()) == {1}
    assert served_version(world) == "v2"


def test_a_superseded_job_is_cancelled(world: World) -> None:
    start(world)
    world._jobs = lambda: None  # type: ignore[method-assign]
    wish(world, "v2")
    world.step()
    (running,) = [n for n, j in world.kube.of("Job").items() if not (j.get("status") or {}).get("conditions")]
    wish(world, "v1")
    world.step()
    assert running not in world.kube.of("Job")


def test_one_lost_answer_of_a_pod_does_not_unready_its_adapters(world: World) -> None:
    start(world)
    world.pods.unreachable = set(world.pods.states)
    for _ in range(20):
        world.step()
        assert condition(world, c.READY, "LoRAAdapter", "a")[0] == "True"
    for _ in range(20):
        world.step()
    assert condition(world, c.READY, "LoRAAdapter", "a")[0] == "False"
    world.pods.unreachable = set()
    world.settle()
    assert condition(world, c.READY, "LoRAAdapter", "a")[0] == "True"


def test_a_remembered_answer_is_not_enough_to_switch(world: World) -> None:
    start(world)
    before = world.kube.of("BaseModel")["base"]["status"]["revision"]
    wish(world, "v2")
    for _ in range(40):
        world.pods.unreachable = {ip for ip, s in world.pods.states.items() if s.revision != before}
        world.step()
    assert served_version(world) == "v1"
    world.pods.unreachable = set()
    world.settle()
    assert served_version(world) == "v2"


def test_a_variant_that_pods_refuse_stops_the_roll_out_and_is_told(world: World) -> None:
    start(world)
    before = world.kube.of("BaseModel")["base"]["status"]["revision"]

    def refuse() -> None:
        for ip, state in world.pods.states.items():
            if state.revision != before:
                bad = {"state": AdapterState.FAILED, "message": "probe: cosine 0.1"}
                adapters = tuple(a.model_copy(update=bad) for a in state.adapters)
                world.pods.states[ip] = state.model_copy(update={"adapters": adapters})

    wish(world, "v2")
    for _ in range(40):
        world.step()
        refuse()
    assert served_version(world) == "v1"
    assert condition(world, c.STALLED)[1] == c.VERIFICATION_FAILED
    assert "cosine 0.1" in condition(world, c.STALLED)[2]


def test_a_deleted_service_comes_back_on_the_served_revision_not_on_the_wished_one(world: World) -> None:
    start(world)
    revision = world.kube.of("BaseModel")["base"]["status"]["revision"]
    world.work = lambda r: refused(r) if isinstance(r, AdaptRequest) else succeed(r)
    wish(world, "v2")
    world.settle()
    world.kube.remove("Service", "base")
    world.settle()
    assert world.kube.of("Service")["base"]["spec"]["selector"][labels.REVISION] == revision


def test_a_deleted_deployment_of_the_served_revision_comes_back(world: World) -> None:
    start(world)
    (name,) = world.kube.of("Deployment")
    world.kube.remove("Deployment", name)
    world.settle()
    assert set(world.kube.of("Deployment")) == {name}


def test_a_set_that_somebody_edited_is_written_again(world: World) -> None:
    start(world)
    (name,) = [n for n in world.kube.of("ConfigMap") if "-set-" in n]
    world.kube.change("ConfigMap", name, data={"set.json": "{}"})
    world.settle()
    assert '"adapters": [{' in world.kube.of("ConfigMap")[name]["data"]["set.json"]


def test_hundreds_of_adapters_stay_few_lines_of_status(world: World) -> None:
    names = [f"a{i:03}" for i in range(120)]
    world.work = lambda r: 64 if isinstance(r, FetchRequest) and "a0" in r.sources[0].uri else succeed(r)
    world.kube.put(base_model(upgrade={"maxParallelJobs": 64}))
    for name in names:
        world.kube.put(lora_adapter(name, data=False))
    world.settle()
    status = world.kube.of("BaseModel")["base"]["status"]
    assert status["adapters"] == {"total": 120, "ready": 20, "adapting": 0, "failed": 100}
    assert len(status["failures"]) == 10
