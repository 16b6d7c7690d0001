"""Adapters made of examples alone, from their first wish through appended tasks and upgrades of the base."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from readapt_api import conditions as c
from readapt_api import labels
from readapt_api.digest import digest_of
from readapt_api.jobs import AdaptRequest, FetchRequest, JobKind, LearnRequest, Summary, TrainRequest
from readapt_api.serving import AdapterState
from readapt_testing.fake_world import (
    World,
    adapted_variant,
    base_model,
    content,
    lora_adapter,
    succeed,
    tasks,
    trained_variant,
)
from readapt_testing.status_lint import lint

V1, V2 = content("pvc://models/v1"), content("pvc://models/v2")


def data_of(name: str) -> str:
    return digest_of({"contents": [f"pvc://data/{name}/{split}.jsonl" for split in ("train", "validation")]})


def together(*names: str) -> str:
    return digest_of({"together": [data_of(name) for name in names]})


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        yield world
        assert [text for k in ("BaseModel", "LoRAAdapter") for o in world.kube.of(k).values() for text in lint(o)] == []


def start(world: World, source: Any, data: bool, version: str = "v1") -> None:
    world.kube.put(base_model(version))
    world.kube.put(lora_adapter("a", source, data))
    world.settle()


def wish(world: World, version: str) -> None:
    world.kube.change("BaseModel", "base", spec={"version": version})
    world.settle()


def append(world: World, *names: str) -> None:
    world.kube.change("LoRAAdapter", "a", spec={"source": tasks(*names)})


def status(world: World) -> Any:
    return world.kube.of("LoRAAdapter")["a"]["status"]


def verified(world: World) -> str | None:
    """What the one pod answers with under the adapter's name."""
    (state,) = world.pods.states.values()
    return next((a.digest for a in state.adapters if a.state is AdapterState.VERIFIED), None)


def condition(world: World, kind: str) -> tuple[str, str]:
    found = next((x for x in status(world)["conditions"] if x["type"] == kind), {"status": "", "reason": ""})
    return found["status"], found["reason"]


def requests(world: World, kind: type) -> list[Any]:
    return [r for r in world.requests if isinstance(r, kind)]


TRAIN: dict[str, Any] = {"train": {"rank": 4, "targetModules": ["q_proj"], "maxSteps": 50}}


def test_an_adapter_is_trained_on_the_wished_version_and_served_with_its_score(world: World) -> None:
    start(world, TRAIN, data=True)
    (request,) = requests(world, TrainRequest)
    assert (request.base, request.data, request.rank, request.target_modules) == (V1, data_of("a"), 4, ("q_proj",))
    assert (request.max_steps, request.learning_rate, request.alpha) == (50, "1e-3", 16)
    assert condition(world, c.READY) == ("True", c.VERIFIED)
    assert condition(world, c.UP_TO_DATE) == ("True", c.GATE_NOT_NEEDED)
    found = status(world)
    assert (found["origin"], found["score"], found["servedDigest"]) == (
        "Trained",
        "0.9000",
        trained_variant(data_of("a"), base=V1),
    )


def test_what_was_trained_is_carried_over_and_never_trained_again(world: World) -> None:
    start(world, TRAIN, data=True)
    wish(world, "v2")
    (item,) = requests(world, AdaptRequest)[0].items
    reference = trained_variant(data_of("a"), base=V1)
    assert (item.reference, item.data) == (reference, data_of("a"))
    assert status(world)["servedDigest"] == adapted_variant(reference, V2)
    wish(world, "v1")
    assert status(world)["servedDigest"] == reference
    assert len(requests(world, TrainRequest)) == 1


def test_tasks_are_learned_in_order_by_one_job(world: World) -> None:
    start(world, tasks("one", "two"), data=False)
    (request,) = requests(world, LearnRequest)
    assert [(t.name, t.data) for t in request.tasks] == [("one", data_of("one")), ("two", data_of("two"))]
    found = status(world)
    assert (found["origin"], found["servedDigest"]) == (
        "Incremental",
        trained_variant(data_of("one"), data_of("two"), base=V1),
    )
    assert [(t["name"], t["dataDigest"]) for t in found["tasks"]] == [(t.name, t.data) for t in request.tasks]
    assert found["dataDigest"] == together("one", "two")


def test_an_appended_task_is_learned_while_the_shorter_sequence_serves(world: World) -> None:
    start(world, tasks("one"), data=False)
    before = status(world)["servedDigest"]
    append(world, "one", "two")
    met = [before]
    for _ in range(40):
        world.step()
        now = verified(world)
        met += [now] if now != met[-1] else []
    assert met == [before, trained_variant(data_of("one"), data_of("two"), base=V1)]
    assert condition(world, c.UP_TO_DATE)[0] == "True"


def test_after_an_upgrade_a_task_is_learned_where_the_others_were_and_carried_over(world: World) -> None:
    start(world, tasks("one"), data=False)
    wish(world, "v2")
    carried = adapted_variant(trained_variant(data_of("one"), base=V1), V2)
    assert status(world)["servedDigest"] == carried
    append(world, "one", "two")
    world.settle()
    assert {r.base for r in requests(world, LearnRequest)} == {V1}
    longer = trained_variant(data_of("one"), data_of("two"), base=V1)
    (item,) = requests(world, AdaptRequest)[-1].items
    assert (item.reference, item.data) == (longer, together("one", "two"))
    assert status(world)["servedDigest"] == adapted_variant(longer, V2)


def test_a_new_task_without_data_stalls_and_the_learned_ones_are_served(world: World) -> None:
    start(world, tasks("one"), data=False)
    before = status(world)["servedDigest"]

    def work(request: Any) -> Summary | int:
        if isinstance(request, FetchRequest) and "/two/" in request.sources[0].uri:
            return Summary(kind=JobKind.FETCH, ok=False, reason="BadData", message="line 3: not JSON")
        return succeed(request)

    world.work = work
    append(world, "one", "two")
    world.settle()
    assert condition(world, c.STALLED) == ("True", c.SOURCE_FAILED)
    assert condition(world, c.READY) == ("True", c.VERIFIED)
    assert status(world)["servedDigest"] == before
    assert len(requests(world, LearnRequest)) == 1


@pytest.mark.parametrize(
    ("source", "data", "reason"), [(TRAIN, True, c.TRAINING_FAILED), (tasks("one"), False, c.LEARNING_FAILED)]
)
def test_work_that_is_refused_stalls_with_its_message(world: World, source: Any, data: bool, reason: str) -> None:
    def work(request: Any) -> Summary | int:
        if isinstance(request, TrainRequest | LearnRequest):
            return Summary(kind=JobKind(request.kind), ok=False, reason="NothingLearned", message="no better")
        return succeed(request)

    world.work = work
    start(world, source, data)
    assert condition(world, c.STALLED) == ("True", reason)
    assert "no better" in next(x["message"] for x in status(world)["conditions"] if x["type"] == c.STALLED)
    world.work = succeed
    world.kube.change("LoRAAdapter", "a", metadata={"annotations": {labels.RETRY: "1"}})
    world.settle()
    assert condition(world, c.READY) == ("True", c.VERIFIED)


def test_a_wish_that_changes_before_anything_is_trained_trains_on_the_new_version(world: World) -> None:
    world.work = lambda request: 137 if isinstance(request, TrainRequest) and request.base == V1 else succeed(request)
    world.kube.put(base_model())
    world.kube.put(lora_adapter("a", TRAIN))
    for _ in range(10):
        world.step()
    wish(world, "v2")
    assert status(world)["servedDigest"] == trained_variant(data_of("a"), base=V2)
