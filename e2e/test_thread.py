"""The thread on a real node: Helm install, two adapters, a base upgrade under load, roll-back, with a tiny Llama.

The same show as ``make demo``, on models that a test can train. Images, cluster, chart and clients are the real ones.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from readapt_cluster import node
from readapt_cluster.waiting import until
from readapt_demo import manifests, stage
from readapt_demo.cast import Cast, Role
from readapt_demo.kubectl import Kubectl
from readapt_demo.upgrade import Show
from readapt_testing.tiny_models import TinyModels, tiny_models
from readapt_testing.world import ADAPTATION, GATE

CHECKOUT = Path(__file__).resolve().parents[1]
QUESTIONS = (
    "t0w0 t0w3",
    "t1w4 g1 t1w7 t1w10",
    "t5w19 t5w2",
    "label1 label4",
    "t2w5 t2w9 g3",
    "g0 t4w4",
    "t6w1 t6w12 g2",
)
"""Away from the adapters' tasks, on which a repaired variant answers as the old one did."""
RELORA = ADAPTATION | {"policy": "ReLoRA", "tuning": {"maxSteps": 50, "learningRate": "1e-3", "batchSize": 16}}
"""Of the adapter alone, so that one repair searches and tunes on a node, whatever Transport can do."""


def _cast(models: TinyModels) -> Cast:
    data = models.root / "data"
    roles = (
        Role("tiny-adapter", "adapter", models.adapter, data / "adapter", adaptation=json.dumps(RELORA)),
        Role("tiny-checkpoint", "checkpoint", models.checkpoint, data / "checkpoint"),
    )
    return Cast(
        base="tiny",
        v1=models.v1,
        v2=models.v2,
        roles=roles,
        adaptation=json.dumps(ADAPTATION),
        gate=json.dumps(GATE),
        serving="{maxModelLen: 128, poolMemory: 64Mi}",
        questions=QUESTIONS,
    )


@pytest.fixture(scope="module")
def stage_is_set(fixture_cache: Path) -> Iterator[tuple[Cast, Kubectl, Path]]:
    """Images built, node up, volumes laid out, Readapt installed by Helm; all of it down again afterwards."""
    cast = _cast(tiny_models(fixture_cache))
    stage.build_images(CHECKOUT)
    try:
        stage.start_cluster(CHECKOUT)
        kube = stage.kubectl(CHECKOUT)
        store = stage.lay_out(cast, kube)
        stage.install(CHECKOUT, kube)
        yield cast, kube, store
    finally:
        node.down()


@pytest.fixture(scope="module")
def report(stage_is_set: tuple[Cast, Kubectl, Path]) -> dict[str, Any]:
    """What the show reports."""
    cast, kube, store = stage_is_set
    return Show(cast, kube, store, lambda text: _log(text), wait_s=900).run()


def _log(text: str) -> None:
    sys.stderr.write(text + "\n")


def test_no_request_fails_while_the_base_moves_there_and_back(report: dict[str, Any]) -> None:
    assert report["requests"]["sent"] > 20
    assert report["requests"]["failed"] == 0


def test_every_answer_comes_from_a_base_and_a_variant_made_for_each_other(report: dict[str, Any]) -> None:
    assert report["mixed_sets"] == 0
    assert min(report["requests"]["telling"].values()) > 0, "no text tells the two sets apart"
    assert len(report["requests"]["by_set"]) == 2
    assert min(report["requests"]["by_connection"].values()) > 0, "a client got no answer"
    assert min(report["requests"]["by_set"].values()) > 0, "one of the sets answered nobody"


def test_a_repair_passes_the_gate(report: dict[str, Any]) -> None:
    adapter, checkpoint = report["adapters"]
    assert adapter["origin"] == "ReLoRA", json.dumps(adapter)
    assert checkpoint["origin"] in ("Transported", "ReLoRA"), json.dumps(checkpoint)
    assert checkpoint["score_copy"] <= checkpoint["score_before"] - 0.04, json.dumps(checkpoint)
    for row in (adapter, checkpoint):
        assert row["score_after"] >= row["score_before"] - 0.04, json.dumps(row)
        assert row["retention"] is not None, json.dumps(row)


def test_rolling_back_starts_no_job(report: dict[str, Any]) -> None:
    assert report["rollback_jobs"] == 0


def _messages(kube: Kubectl, name: str) -> str:
    conditions = kube.get("loraadapter", name).get("status", {}).get("conditions", [])
    return "\n".join(f"{c['type']} {c['reason']}: {c['message']}" for c in conditions)


@pytest.mark.usefixtures("report")
def test_a_claim_that_does_not_exist_is_told_at_once(stage_is_set: tuple[Cast, Kubectl, Path]) -> None:
    cast, kube, _ = stage_is_set
    lost = replace(cast.roles[0], name="lost")
    kube.apply(manifests.lora_adapter(cast, lost).replace(f"{manifests.SOURCES_CLAIM}/lost/weights", "nowhere/weights"))
    assert until(lambda: 'persistentvolumeclaim "nowhere" not found' in _messages(kube, "lost"), 60), _messages(
        kube, "lost"
    )
    kube("delete", "rla", "lost")


def test_uninstalling_keeps_the_resources_and_what_is_served(stage_is_set: tuple[Cast, Kubectl, Path]) -> None:
    cast, kube, _ = stage_is_set
    stage.uninstall(kube)
    assert kube.get("basemodel", cast.base)["status"]["version"] == "v1"
    assert kube.get("deployments", "", "-l", f"readapt.dev/base={cast.base}")["items"]
    stage.install(CHECKOUT, kube)
