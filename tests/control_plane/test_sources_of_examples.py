"""Adapters of examples alone, with real Jobs and pods: trained, learned, and one task more while the rest serves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from readapt_api.artifacts import MAGNITUDES, MANIFEST
from readapt_api.digest import hex_of
from readapt_testing.clients import Client
from readapt_testing.kube import Object
from readapt_testing.service_dialer import ServiceDialer
from readapt_testing.world import BASE, World

pytestmark = pytest.mark.control_plane
TRAINED, INCREMENTAL = "trained", "incremental"
TASKS = {"low": range(3), "middle": range(3, 6), "high": range(6, 8)}
SETTINGS = {"rank": 4, "maxSteps": 40, "learningRate": "1e-2", "batchSize": 16}


def write_tasks(models: Path) -> None:
    """The adapter's examples, divided by their labels."""
    for name, wanted in TASKS.items():
        folder = models / "data" / name
        folder.mkdir()
        completions = {f" label{i}" for i in wanted}
        for split in ("train", "validation", "test"):
            lines = (models / "data" / "adapter" / f"{split}.jsonl").read_text().splitlines(keepends=True)
            kept = [line for line in lines if json.loads(line)["completion"] in completions]
            (folder / f"{split}.jsonl").write_text("".join(kept[:400]))


def variant(world: World, name: str) -> Object:
    (found,) = [v for v in world.adapter(name)["status"]["variants"] if v["digest"] == served(world, name)]
    return found


def served(world: World, name: str) -> str:
    return str(world.adapter(name)["status"]["servedDigest"])


@pytest.mark.fault
def test_examples_become_served_adapters_and_a_task_is_appended_under_load(world: World) -> None:
    write_tasks(world.models.root)
    world.apply_base()
    world.apply_trained(TRAINED, **SETTINGS)
    world.apply_tasks(INCREMENTAL, ["low", "middle"], **SETTINGS)
    world.wait_settled("v1")
    for name, origin in ((TRAINED, "Trained"), (INCREMENTAL, "Incremental")):
        found = variant(world, name)
        assert (found["origin"], found["passed"], found["reason"]) == (origin, True, "GateNotNeeded")
        assert float(found["score"]) > float(found["reference"]) + 0.1
    before = served(world, INCREMENTAL)
    with (
        ServiceDialer(world.kube, world.namespace, BASE) as dialer,
        Client(dialer, (TRAINED, INCREMENTAL), world.models.prompts("adapter", 4), keep_alive=True) as client,
    ):
        client.wait_for(4)
        world.apply_tasks(INCREMENTAL, [*TASKS], **SETTINGS)
        world.wait(
            "LoRAAdapter", INCREMENTAL, lambda o: o["status"].get("servedDigest") not in (None, before), "the new task"
        )
        world.wait_settled("v1")
        client.wait_for(4)
    assert [a.problem for a in client.answers() if a.problem] == []
    assert {a.adapter for a in client.answers() if a.model == INCREMENTAL} >= {
        f"{INCREMENTAL}@{before}",
        f"{INCREMENTAL}@{served(world, INCREMENTAL)}",
    }
    manifest = json.loads((world.store / "artifacts" / hex_of(served(world, INCREMENTAL)) / MANIFEST).read_bytes())
    assert [(b["task"], b["scales"]) for b in manifest["blocks"]] == [(name, MAGNITUDES) for name in TASKS]
    assert len(world.jobs("learn")) == 2
    assert '"known": 2' in world.player.logs(), "the longer sequence went on from the shorter one"
