"""The store loses what was fetched: a person says so by ``readapt.dev/retry``, and it is fetched again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from readapt_api import conditions as c
from readapt_api import labels
from readapt_api.digest import digest_of
from readapt_api.errors import LOST_ARTIFACT
from readapt_api.jobs import AdaptRequest, DriftRequest, FetchRequest, FetchRole, JobKind, Summary
from readapt_runtime.store import CorruptArtifact, MissingArtifact
from readapt_testing.fake_world import World, base_model, content, lora_adapter, succeed
from readapt_testing.status_lint import lint

V1 = content("pvc://models/v1")


class Store:
    """What Jobs find: they answer as the runtime does when an artifact is lost, until it is fetched again."""

    def __init__(self) -> None:
        self.lost: set[str] = set()

    def work(self, request: Any) -> Summary | int:
        if isinstance(request, FetchRequest):
            summary = succeed(request)
            assert summary.fetch is not None
            self.lost -= {summary.fetch.digest, summary.fetch.variant or ""}
            return summary
        needed: set[str] = set()
        if isinstance(request, DriftRequest):
            needed = {request.old_base, request.new_base}
        if isinstance(request, AdaptRequest):
            needed = {request.old_base, request.new_base, request.items[0].reference, request.items[0].data}
        if needed & self.lost:
            return Summary(kind=JobKind(request.kind), ok=False, reason="MissingArtifact", message="it is not there")
        return succeed(request)


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        world.kube.put(base_model())
        world.kube.put(lora_adapter("a"))
        world.settle()
        yield world
        assert [text for k in ("BaseModel", "LoRAAdapter") for o in world.kube.of(k).values() for text in lint(o)] == []


def lose(world: World, digest: str) -> None:
    """The upgrade that follows stalls."""
    store = Store()
    store.lost = {digest}
    world.work = store.work
    world.kube.change("BaseModel", "base", spec={"version": "v2"})
    world.settle(quiet=45)
    assert stalled(world)


def stalled(world: World) -> bool:
    return any(x["type"] == c.STALLED for x in world.kube.of("LoRAAdapter")["a"]["status"]["conditions"])


def retry(world: World, kind: str, name: str, value: str = "1") -> None:
    world.kube.change(kind, name, metadata={"annotations": {labels.RETRY: value}})


def fetched(world: World, role: FetchRole) -> list[FetchRequest]:
    return [r for r in world.requests if isinstance(r, FetchRequest) and r.role is role]


def served_version(world: World) -> str:
    return str(world.kube.of("BaseModel")["base"]["status"]["version"])


def test_the_reasons_are_the_names_of_the_stores_errors() -> None:
    assert (MissingArtifact.__name__, CorruptArtifact.__name__) == LOST_ARTIFACT


def test_a_lost_version_is_fetched_again_and_must_be_the_same(world: World) -> None:
    lose(world, V1)
    retry(world, "BaseModel", "base")
    world.settle()
    last = [r for r in fetched(world, FetchRole.BASE) if r.sources[0].uri == "pvc://models/v1"][-1]
    assert last.sources[0].digest == V1
    assert served_version(world) == "v2"
    before = len(world.requests)
    world.restart()
    world.settle()
    assert len(world.requests) == before


@pytest.mark.parametrize("role", [FetchRole.ADAPTER, FetchRole.DATA])
def test_a_lost_source_or_data_of_an_adapter_is_fetched_again(world: World, role: FetchRole) -> None:
    status = world.kube.of("LoRAAdapter")["a"]["status"]
    lose(world, status["variants"][0]["digest"] if role is FetchRole.ADAPTER else status["dataDigest"])
    assert len(fetched(world, role)) == 1
    retry(world, "LoRAAdapter", "a")
    world.settle()
    assert len(fetched(world, role)) == 2
    assert served_version(world) == "v2"


def test_what_is_served_stays_served_while_and_when_the_source_is_gone(world: World) -> None:
    lose(world, V1)
    other = digest_of({"content": "another"})
    world.work = lambda r: (
        Summary(kind=JobKind.FETCH, ok=False, reason="WrongDigest", message=f"found {other}")
        if isinstance(r, FetchRequest)
        else succeed(r)
    )
    retry(world, "BaseModel", "base")
    world.settle()
    (condition,) = [x for x in world.kube.of("BaseModel")["base"]["status"]["conditions"] if x["type"] == c.STALLED]
    assert (condition["reason"], other in condition["message"]) == (c.SOURCE_FAILED, True)
    assert (served_version(world), len(world.pods.states)) == ("v1", 1)


def test_a_retry_for_another_reason_fetches_nothing_again(world: World) -> None:
    before = len(world.requests)
    retry(world, "BaseModel", "base")
    retry(world, "LoRAAdapter", "a")
    world.settle()
    assert len(world.requests) == before
