"""pytest plugin: the session's control plane and a fresh namespace per test.

The control plane is real (etcd, kube-apiserver, kube-controller-manager) and never skipped: missing binaries are built
first, which takes minutes once per machine.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from readapt_api.schema import crds
from readapt_cluster.control_plane import ControlPlane
from readapt_cluster.waiting import until
from readapt_testing import triton_modes  # noqa: F401  (before anything imports Triton)
from readapt_testing.kube import Kube, KubeError
from readapt_testing.status_lint import lint_namespace


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A running control plane without nodes, the CustomResourceDefinitions established."""
    with ControlPlane(tmp_path_factory.mktemp("control-plane")) as plane:
        with Kube(plane.kubeconfig) as kube:
            _install_definitions(kube)
        yield plane


@pytest.fixture(scope="session")
def kube(control_plane: ControlPlane) -> Iterator[Kube]:
    """The administrator's client."""
    with Kube(control_plane.kubeconfig) as client:
        yield client


@pytest.fixture
def namespace(kube: Kube, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace named after the test."""
    with fresh_namespace(kube, request.node.name) as name:
        yield name


@contextmanager
def fresh_namespace(kube: Kube, title: str) -> Iterator[str]:
    """A namespace named after ``title``; at the end every status in it is linted and it is deleted."""
    words = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    name = f"{words[:40].strip('-')}-{uuid.uuid4().hex[:6]}"
    kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    kube.wait("ServiceAccount", "default", name, lambda found: found is not None, 30, "created")
    yield name
    complaints = lint_namespace(kube, name)
    kube.delete("Namespace", name)
    assert not complaints, "\n".join(complaints)


@pytest.fixture(scope="session")
def fixture_cache() -> Path:
    """Where what tests build once per machine is kept."""
    from readapt_cluster.places import cache

    folder = cache() / "fixtures"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _install_definitions(kube: Kube) -> None:
    for definition in crds().values():
        kube.create(yaml.safe_load(yaml.safe_dump(definition)))
    for definition in crds().values():
        kube.wait(
            "CustomResourceDefinition",
            definition["metadata"]["name"],
            None,
            lambda found: found is not None and _established(found),
            30,
            "established",
        )
    # Established comes a moment before the server routes requests for the new resources.
    if not until(lambda: _served(kube), 30):
        raise TimeoutError("the API server does not serve BaseModel and LoRAAdapter")


def _served(kube: Kube) -> bool:
    try:
        return all(kube.items(kind) == [] for kind in ("BaseModel", "LoRAAdapter"))
    except KubeError as error:
        if error.code != 404:
            raise
        return False


def _established(definition: dict[str, object]) -> bool:
    status = definition.get("status")
    conditions = (status.get("conditions") or []) if isinstance(status, dict) else []  # at first it is null
    return any(c["type"] == "Established" and c["status"] == "True" for c in conditions)
