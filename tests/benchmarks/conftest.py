"""The benchmarks are scripts, not a package: their folders are where they import from."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from readapt_api.contract import Digest
from readapt_runtime.adapt.base import load_base
from readapt_runtime.adapt.item import Move
from readapt_runtime.drift import measure, read_drift
from readapt_runtime.progress import JsonLog
from readapt_testing.tiny_models import TinyModels, tiny_models

for _name in ("serving", "adaptation"):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / _name))


@pytest.fixture(scope="module")
def single_thread() -> Iterator[None]:
    """As the benchmarks of adaptation compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def models(fixture_cache: Path) -> TinyModels:
    return tiny_models(fixture_cache)


@pytest.fixture(scope="module")
def move(models: TinyModels, single_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Move:
    """The tiny models' own, in memory."""
    drift = tmp_path_factory.mktemp("move") / "drift"
    measure(models.v1, models.v2, drift, JsonLog(io.StringIO()))
    old, new = (load_base(folder, Digest(f"sha256:{key * 64}")) for folder, key in ((models.v1, "1"), (models.v2, "2")))
    return Move(old, new, read_drift(drift))
