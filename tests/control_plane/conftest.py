"""Worlds: a namespace with the real operator and played pods; store and models as folders."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest

from readapt_cluster.control_plane import ControlPlane
from readapt_testing.chart import operator_credentials
from readapt_testing.fault_proxy import FaultProxy
from readapt_testing.kube import Kube
from readapt_testing.operator_process import OperatorProcess
from readapt_testing.player import Player
from readapt_testing.recorder import Recorder
from readapt_testing.tiny_models import TinyModels, tiny_models
from readapt_testing.world import MODELS_CLAIM, STORE_CLAIM, World

Worlds = Callable[..., AbstractContextManager[World]]


@pytest.fixture(scope="session")
def models(fixture_cache: Path) -> TinyModels:
    return tiny_models(fixture_cache)


@pytest.fixture(scope="session")
def session_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all worlds: a Job whose work another world has done finds the result there."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="session")
def worlds(
    control_plane: ControlPlane,
    kube: Kube,
    models: TinyModels,
    session_store: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Worlds:
    """``with worlds(namespace, faults=False) as world``: the operator has the chart's rights and nothing more."""

    @contextmanager
    def make(namespace: str, faults: bool = False) -> Iterator[World]:
        folder = tmp_path_factory.mktemp("world")
        own = TinyModels(Path(shutil.copytree(models.root, folder / "models")))
        claims = {STORE_CLAIM: session_store, MODELS_CLAIM: own.root}
        credentials = operator_credentials(control_plane, namespace)
        with ExitStack() as stack:
            recorder = stack.enter_context(Recorder(kube, namespace))
            player = stack.enter_context(Player(kube, namespace, folder / "pods", claims))
            proxy = FaultProxy(control_plane.url, control_plane.ca_file) if faults else None
            if proxy is not None:
                stack.enter_context(proxy)
            operator = stack.enter_context(OperatorProcess(credentials, namespace, folder, proxy=proxy))
            yield World(kube, namespace, own, session_store, player, recorder, operator, proxy)

    return make


@pytest.fixture
def world(worlds: Worlds, namespace: str) -> Iterator[World]:
    """A world without faults for one test."""
    with worlds(namespace) as running:
        yield running
