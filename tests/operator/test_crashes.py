"""The operator is killed around every single write, and started again; or the write is answered with an error.

The write points are learned from an undisturbed run, so new writes are covered without edits. Whatever the point, the
end state is the same and no child is created twice.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from readapt_api import labels
from readapt_api.serving import SHARD_FILE
from readapt_operator.kube.errors import Unavailable
from readapt_operator.loop import PassFailed
from readapt_testing.fake_kube import Crash
from readapt_testing.fake_world import World, base_model, checkpoint, lora_adapter

_TIMES = {"creationTimestamp", "startedAt", "finishedAt", "lastTransitionTime", "readySeconds"}
_CHANCE = {*_TIMES, "resourceVersion", "sequence"}
_PARTS = {"first": 0, "upgrade": 1, "roll-back": 2}


def play(world: World, part: str, **upgrade: Any) -> None:
    """A first roll-out, then an upgrade, then the way back; writes of ``part`` may be disturbed."""
    arm, world.kube.around_write = world.kube.around_write, lambda when: None
    versions = ["v1", "v2", "v1"]
    world.kube.put(base_model(upgrade=upgrade))
    world.kube.put(lora_adapter("a"))
    world.kube.put(lora_adapter("b", checkpoint("b")))
    for i, version in enumerate(versions):
        if i == _PARTS[part]:
            world.kube.around_write = arm
        if i > 0:
            wish(world, version)
        survive(world)
        if i == _PARTS[part]:
            return


def wish(world: World, version: str) -> None:
    world.kube.change("BaseModel", "base", spec={"version": version})


def survive(world: World) -> None:
    """Settles; a killed operator is replaced by one that remembers nothing, a failed pass is followed by another."""
    for _ in range(5):
        try:
            world.settle(quiet=6)
        except Crash:
            world.restart()
            world.move()
        except PassFailed:
            world.move()
        else:
            return
    raise AssertionError("killed again and again")


def state(world: World) -> dict[str, Any]:
    """Every object, without times and versions; pods are counted, their names and addresses are chance."""
    kept = {str(p): scrub(d) for p, d in world.kube.objects.items() if p[0] not in ("Pod", "EndpointSlice")}
    pods = Counter(p["metadata"]["labels"].get(labels.REVISION) for p in world.kube.of("Pod").values())
    return {**kept, "pods": pods}


def scrub(value: Any) -> Any:
    if isinstance(value, dict):
        # Adapters may join one by one or together: how often a set was edited is chance, what it is now is not.
        parsed = {k: json.loads(v) for k, v in value.items() if k == SHARD_FILE}
        return {k: scrub(v) for k, v in {**value, **parsed}.items() if k not in _CHANCE}
    if isinstance(value, list):
        return [scrub(v) for v in value]
    return value


def undisturbed(part: str, **upgrade: Any) -> tuple[dict[str, Any], dict[Any, int], int]:
    with World() as world:
        count = 0

        def around(when: str) -> None:
            nonlocal count
            count += when == "before"

        world.kube.around_write = around
        play(world, part, **upgrade)
        return state(world), creations(world), count


def creations(world: World) -> dict[Any, int]:
    """place -> how often it was created; pods are the cluster's business."""
    return {p: n for p, n in world.kube.creations.items() if p[0] not in ("Pod", "EndpointSlice")}


@pytest.mark.parametrize("part", _PARTS)
def test_restart_around_each_write_reaches_the_same_state(part: str) -> None:
    end, created, writes = undisturbed(part)
    assert writes > 5
    for point in range(writes):
        for when in ("before", "after"):
            with World() as world:
                fuse = Fuse(point, when)
                world.kube.around_write = fuse
                play(world, part)
                assert fuse.blown, f"write {point} never came"
                assert state(world) == end, f"killed {when} write {point} of {part}"
                assert creations(world) == created, f"killed {when} write {point} of {part}"


@pytest.mark.parametrize("when", ["before", "after"])
def test_adapters_that_share_a_job_reach_the_same_state_around_each_write(when: str) -> None:
    end, created, writes = undisturbed("upgrade", maxParallelJobs=1)
    adapting = [place for place in created if place[0] == "Job" and "-adapt-" in place[2]]
    assert len(adapting) == 1, "both adapters go in one Job"
    for point in range(writes):
        with World() as world:
            fuse = Fuse(point, when)
            world.kube.around_write = fuse
            play(world, "upgrade", maxParallelJobs=1)
            assert fuse.blown, f"write {point} never came"
            assert (state(world), creations(world)) == (end, created), f"killed {when} write {point}"


@pytest.mark.parametrize("when", ["before", "after"], ids=["refused", "done, but the answer is lost"])
@pytest.mark.parametrize("part", _PARTS)
def test_each_write_that_fails_once_is_made_up_for(part: str, when: str) -> None:
    """The process lives on, and goes on with the other writes of the same pass."""
    end, created, writes = undisturbed(part)
    for point in range(writes):
        with World() as world:
            fuse = Fuse(point, when, error=Unavailable("500 InternalError"))
            world.kube.around_write = fuse
            play(world, part)
            assert fuse.blown, f"write {point} never came"
            assert (state(world), creations(world)) == (end, created), f"write {point} of {part} failed once"


def test_two_crashes_in_one_upgrade_reach_the_same_state() -> None:
    end, created, writes = undisturbed("upgrade")
    for point in range(0, writes, 3):
        with World() as world:
            fuse = Fuse(point, "after", again_after=2)
            world.kube.around_write = fuse
            play(world, "upgrade")
            assert (state(world), creations(world)) == (end, created), f"killed after write {point} and soon again"


class Fuse:
    """Raises an error at one write, and at a later one if asked to."""

    def __init__(
        self, point: int, when: str, again_after: int | None = None, error: BaseException | None = None
    ) -> None:
        self._left, self._when, self._again, self._error = point, when, again_after, error or Crash()
        self.blown = False

    def __call__(self, when: str) -> None:
        if when != self._when or self._left is None:
            return
        if self._left > 0:
            self._left -= 1
            return
        self.blown = True
        self._left, self._again = self._again, None  # type: ignore[assignment]
        raise self._error
