"""What the real API server makes of our resources: defaults, subresources, columns, names, examples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from readapt_cluster.control_plane import ControlPlane
from readapt_testing.kube import Kube, path_of
from readapt_testing.manifests import base_model, edited, lora_adapter

pytestmark = pytest.mark.control_plane

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = {"uri": "pvc://models/full", "baseVersion": "v1"}


def test_defaults_are_stored(kube: Kube, namespace: str) -> None:
    base = kube.create(base_model(), namespace)["spec"]
    adapter = kube.create(edited(lora_adapter(), {"spec.source": {"checkpoint": CHECKPOINT}}), namespace)["spec"]

    assert base["suspend"] is False
    expected = {
        "strategy": "BlueGreen",
        "stragglers": "Block",
        "promotion": "Automatic",
        "maxParallelJobs": 4,
        "adaptersPerJob": 4,
    }
    assert base["upgrade"] == expected
    serving = {"replicas": 1, "maxModelLen": 2048, "maxBatchTokens": 2048, "poolMemory": "4Gi", "maxRank": 64}
    others = {"tensorParallel": 1, "dtype": "Auto", "pod": {}}
    assert base["serving"] == {**serving, **others}
    assert base["jobs"] == {"pod": {}, "maxAttempts": 3, "activeDeadlineSeconds": 3600}
    assert adapter["source"]["checkpoint"] == {**CHECKPOINT, "rank": {"energy": "0.95"}, "maxRank": 64}
    assert adapter["data"] | {"promptField": "prompt", "completionField": "completion"} == adapter["data"]
    tuning = {"maxSteps": 300, "learningRate": "2e-4", "batchSize": 8}
    ladder = {"policy": "Auto", "minRetention": "0.9", "search": {"trials": 8}, "tuning": tuning}
    assert adapter["adaptation"] == ladder
    gate = {"mode": "Enforce", "metric": "Accuracy", "maxRegression": "0.03", "confidence": "0.95", "maxSamples": 3000}
    assert adapter["gate"] == gate
    assert adapter["serving"] == {"preload": False, "priority": 0}


def test_scale_subresource_reads_and_writes_replicas(kube: Kube, namespace: str) -> None:
    kube.create(base_model(), namespace)
    kube.patch("BaseModel", "model", {"status": {"replicas": 1, "selector": "a=b"}}, namespace, "status")

    scale = kube.request("GET", path_of("BaseModel", namespace, "model", "scale"))
    kube.patch("BaseModel", "model", {"spec": {"replicas": 5}}, namespace, "scale")

    assert (scale["spec"], scale["status"]) == ({"replicas": 1}, {"replicas": 1, "selector": "a=b"})
    assert (kube.get("BaseModel", "model", namespace) or {})["spec"]["serving"]["replicas"] == 5


def test_status_is_written_through_its_subresource_alone(kube: Kube, namespace: str) -> None:
    created = kube.create({**base_model(), "status": {"version": "v2"}}, namespace)
    kube.patch("BaseModel", "model", {"status": {"version": "v2"}}, namespace)
    changed = kube.patch("BaseModel", "model", {"status": {"version": "v1"}}, namespace, "status")

    assert "status" not in created
    assert changed["status"] == {"version": "v1"}
    assert changed["metadata"]["generation"] == created["metadata"]["generation"]


@pytest.mark.parametrize(
    ("kind", "columns", "wide"),
    [
        (
            "BaseModel",
            ["Name", "Version", "Target", "Adapters", "Ready", "UpToDate", "Reason", "Age"],
            ["Revision", "Set"],
        ),
        (
            "LoRAAdapter",
            ["Name", "Base", "Version", "Origin", "Score", "Verified", "Ready", "UpToDate", "Reason", "Age"],
            ["Digest", "Source"],
        ),
    ],
)
def test_columns(kind: str, columns: list[str], wide: list[str], kube: Kube) -> None:
    accept = "application/json;as=Table;v=v1;g=meta.k8s.io"
    table = kube.request("GET", path_of(kind, "default"), accept=accept)["columnDefinitions"]

    assert [c["name"] for c in table if c["priority"] == 0] == columns
    assert [c["name"] for c in table if c["priority"] == 1] == wide


def test_short_names_and_category_print_both_kinds(control_plane: ControlPlane, kube: Kube, namespace: str) -> None:
    kube.create(base_model(), namespace)
    kube.create(lora_adapter(), namespace)

    both = control_plane.kubectl("get", "rbm,rla", "-n", namespace, "-o", "name")
    category = control_plane.kubectl("get", "readapt", "-n", namespace, "-o", "wide")

    assert both.split() == ["basemodel.readapt.dev/model", "loraadapter.readapt.dev/adapter"]
    assert "TARGET" in category
    assert "DIGEST" in category


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_examples_apply(path: Path, control_plane: ControlPlane, namespace: str) -> None:
    words = ("apply", "--dry-run=server", "--validate=strict", "-n", namespace, "-f", str(path), "-o", "json")

    assert json.loads(control_plane.kubectl(*words))["kind"]
