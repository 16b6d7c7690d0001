"""Input that cannot work: a clear message in the conditions, while the old set keeps answering; then it is mended."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy
import pytest
from safetensors.numpy import load_file, save_file

from readapt_api import conditions, labels
from readapt_testing.clients import Client
from readapt_testing.kube import Kube, KubeError, Object
from readapt_testing.manifests import OTHER_DIGEST
from readapt_testing.plugin import fresh_namespace
from readapt_testing.service_dialer import ServiceDialer
from readapt_testing.world import ADAPTER, BASE, MODELS_CLAIM, World

pytestmark = pytest.mark.control_plane

BAD_VERSIONS = {
    "missing": "nothing there",
    "pinned": f"pinned {OTHER_DIGEST}, found sha256:",
    "truncated": "truncated?",
    "nan": "NaN or infinite values",
}
BAD_ADAPTERS = {
    "nowhere": f"pvc://{MODELS_CLAIM}/nowhere: nothing there",
    "misfit": "shape",
    "not-finite": "NaN or infinite values",
}


def spoil(root: Path) -> None:
    """Folders next to the good ones, each bad in one way."""
    for name in ("pinned", "truncated", "nan"):
        shutil.copytree(root / "v2", root / name)
    weights = root / "truncated" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    _rewrite(root / "nan" / "model.safetensors", lambda name, values: values * numpy.float32("nan"))
    for name in ("misfit", "not-finite"):
        shutil.copytree(root / "adapter", root / name)
    _rewrite(
        root / "misfit" / "adapter_model.safetensors",
        lambda name, values: values[:, :-8] if "lora_A" in name else values,
    )
    _rewrite(root / "not-finite" / "adapter_model.safetensors", lambda name, values: values * numpy.float32("inf"))


def _rewrite(path: Path, change: Callable[[str, numpy.ndarray], numpy.ndarray]) -> None:
    """All tensors but norms are changed."""
    tensors = load_file(path)
    changed = {n: v if v.ndim < 2 else numpy.ascontiguousarray(change(n, v)) for n, v in tensors.items()}
    save_file(changed, path, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def world(worlds: Callable[..., AbstractContextManager[World]], kube: Kube) -> Iterator[World]:
    """One world for all: its base knows the bad versions from the start and serves v1."""
    with fresh_namespace(kube, "bad-input") as namespace, worlds(namespace) as running:
        spoil(running.models.root)
        running.apply_base(versions=versions())
        running.apply_adapter()
        running.wait_settled("v1")
        yield running


def versions() -> list[Object]:
    listed = [{"name": n, "source": {"uri": f"pvc://{MODELS_CLAIM}/{n}"}} for n in ("v1", "v2", *BAD_VERSIONS)]
    next(v for v in listed if v["name"] == "pinned")["source"]["digest"] = OTHER_DIGEST  # type: ignore[index]
    return listed


@pytest.fixture
def client(world: World) -> Iterator[Client]:
    """Asks base and adapter all the while; whatever happens, nothing fails."""
    with (
        ServiceDialer(world.kube, world.namespace, BASE) as dialer,
        Client(dialer, (BASE, ADAPTER), world.models.prompts("adapter", 4), keep_alive=True) as running,
    ):
        running.wait_for(4)
        yield running
        running.wait_for(4)
    assert [a.problem for a in running.answers() if a.problem] == []
    assert {a.set for a in running.answers()} == {world.base()["status"]["revision"]}


def test_unknown_version_is_refused_at_apply(world: World, client: Client) -> None:
    with pytest.raises(KubeError, match="version must name an entry of versions"):
        world.wish("v9")


@pytest.mark.parametrize("version", BAD_VERSIONS)
def test_bad_version_stalls_while_the_old_set_serves(version: str, world: World, client: Client) -> None:
    world.wish(version)
    stalled = world.wait_condition("BaseModel", BASE, conditions.STALLED, reason=conditions.SOURCE_FAILED)
    assert BAD_VERSIONS[version] in stalled["message"]
    assert version in stalled["message"]
    world.wait_condition("BaseModel", BASE, conditions.UP_TO_DATE, "False", conditions.SOURCE_FAILED)
    world.wait_condition("BaseModel", BASE, conditions.READY)
    attempts = [j for j in world.jobs("fetch") if version in json.dumps(j["metadata"])]
    assert len(attempts) <= 1, "bad input is not tried again"

    world.wish("v1")
    world.wait_settled("v1")


@pytest.mark.parametrize("name", BAD_ADAPTERS)
def test_bad_adapter_stalls_alone(name: str, world: World, client: Client) -> None:
    world.apply_adapter(name, folder=name)
    stalled = world.wait_condition("LoRAAdapter", name, conditions.STALLED, reason=conditions.SOURCE_FAILED)
    assert BAD_ADAPTERS[name] in stalled["message"]
    world.wait_condition("LoRAAdapter", ADAPTER, conditions.READY)
    world.wait_condition("BaseModel", BASE, conditions.READY)

    world.kube.delete("LoRAAdapter", name, world.namespace)
    world.wait_settled("v1")


def test_adapter_for_an_unknown_version_stalls(world: World, client: Client) -> None:
    source = {"adapter": {"uri": f"pvc://{MODELS_CLAIM}/adapter", "baseVersion": "v7"}}
    world.apply_adapter("lost", source=source)
    stalled = world.wait_condition("LoRAAdapter", "lost", conditions.STALLED, reason=conditions.UNKNOWN_VERSION)
    assert "v7" in stalled["message"]

    world.kube.delete("LoRAAdapter", "lost", world.namespace)
    world.wait_settled("v1")


def test_mended_source_is_fetched_after_a_retry(world: World) -> None:
    """What is there now are the weights of v1: the same revision under another name, so no pod is replaced."""
    world.wish("missing")
    world.wait_condition("BaseModel", BASE, conditions.STALLED, reason=conditions.SOURCE_FAILED)
    shutil.copytree(world.models.v1, world.models.root / "missing")
    world.kube.patch("BaseModel", BASE, {"metadata": {"annotations": {labels.RETRY: "1"}}}, world.namespace)
    deployments = world.recorder.creations("Deployment")
    world.wait_settled("missing")
    assert world.recorder.creations("Deployment") == deployments

    world.wish("v1")
    world.wait_settled("v1")
