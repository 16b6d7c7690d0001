"""Several adapters in one adapt Job, as the operator starts it and as each of them is told."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from readapt_api import labels
from readapt_api.jobs import AdaptItem, AdaptRequest, Summary
from readapt_api.v1alpha1.base_model import BaseModelResource
from readapt_operator.act import act
from readapt_operator.builders.job import Task, build_job, build_request
from readapt_operator.builders.meta import Owner
from readapt_operator.decide.plan import StartJob
from readapt_operator.queue import Key
from readapt_testing.fake_kube import FakeKube
from readapt_testing.fake_world import World, base_model, lora_adapter, succeed

ONE, TWO = "sha256:" + 64 * "1", "sha256:" + 64 * "2"
NAMES = ("a", "b", "c", "d", "e", "f")


def adapt_jobs(world: World) -> dict[str, Any]:
    return {name: body for (kind, _, name), body in world.kube.objects.items() if kind == "Job" and "-adapt-" in name}


def upgraded(work: Any = succeed, **upgrade: Any) -> World:
    world = World(work)
    world.__enter__()
    world.kube.put(base_model(upgrade=upgrade))
    for name in NAMES:
        world.kube.put(lora_adapter(name))
    world.settle()
    world.kube.change("BaseModel", "base", spec={"version": "v2"})
    world.settle()
    return world


def moved(world: World) -> dict[str, Any]:
    """Per adapter the cell of the wished version."""
    cells = {n: a["status"]["variants"][-1] for n, a in world.kube.of("LoRAAdapter").items()}
    return {n: cell for n, cell in cells.items() if cell["baseVersion"] == "v2"}


def test_six_adapters_in_one_slot_take_two_jobs_and_each_is_told_its_own() -> None:
    world = upgraded(maxParallelJobs=1)
    jobs = adapt_jobs(world)
    assert len(jobs) == 2
    cells = moved(world)
    assert set(cells) == set(NAMES)
    assert all(cell["passed"] for cell in cells.values())
    assert len({cell["digest"] for cell in cells.values()}) == len(NAMES), "nobody got a sibling's variant"
    assert len({cell["inputHash"] for cell in cells.values()}) == len(NAMES)
    assert {cell["job"] for cell in cells.values()} == set(jobs)
    world.__exit__()


def test_an_outcome_that_had_no_room_is_fetched_by_a_job_of_its_own() -> None:
    def forgetful(request: Any) -> Summary:
        told = succeed(request)
        return told.model_copy(update={"outcomes": told.outcomes[:1]})

    world = upgraded(forgetful, maxParallelJobs=1, adaptersPerJob=4)
    assert set(moved(world)) == set(NAMES)
    assert len(adapt_jobs(world)) == len(NAMES)
    world.__exit__()


def task(name: str, *others: Task) -> Task:
    item = AdaptItem(name=name, reference=ONE, data=TWO)
    request = AdaptRequest(old_base=ONE, new_base=TWO, drift=ONE, items=(item,))
    return Task(
        Owner("LoRAAdapter", "default", name, f"{name}-uid"), "base", request, request.item_hash(item), "", others
    )


@pytest.mark.parametrize(
    ("there", "wished"),
    [(task("a", task("b")), task("a")), (task("a"), task("a", task("b")))],
    ids=["the request names one more", "the request names one less"],
)
def test_a_job_is_marked_with_the_items_of_the_request_that_is_there(there: Task, wished: Task) -> None:
    """Killed between the two writes; meanwhile others came or went."""
    kube = FakeKube(lambda: "2026-01-01T00:00:00Z")
    kube.put(build_request(there, 1))
    body = base_model()
    body["metadata"]["uid"] = "base-uid"
    job = build_job(wished, 1, BaseModelResource.model_validate(body), "image")
    start = StartJob(build_request(wished, 1), job)
    outcome = asyncio.run(act(Key("default", "base"), (start,), kube, pods=None))  # type: ignore[arg-type]
    assert not outcome.errors
    made = kube.objects["Job", "default", job["metadata"]["name"]]
    marks = json.loads(made["metadata"]["annotations"].get(labels.OTHER_ITEMS, "[]"))
    assert marks == [list(other.wish) for other in there.others]
