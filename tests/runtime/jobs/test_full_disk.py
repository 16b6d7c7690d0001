"""Fetch, drift and extract on a disk that is really full."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from readapt_api.jobs import DriftRequest, ExtractRequest, FetchRequest, FetchRole, Request
from readapt_testing.small_disk import small_disk, suffer

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]
LEVELS_KIB = (0, 8, 64, 256)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 64) as folder:
        yield folder


def failed(bench: Any, disk: Path, request: Request) -> int:
    """At how many levels the Job found no room."""
    (bench.store.root / "artifacts").mkdir(parents=True, exist_ok=True)
    return sum(each.failed for each in suffer(disk, bench.folder, bench.store.root, request, LEVELS_KIB))


def test_fetch(bench: Any, disk: Path, source: Any) -> None:
    assert failed(bench, disk, FetchRequest(role=FetchRole.BASE, sources=(source("v1"),))) == len(LEVELS_KIB)


def test_drift(bench: Any, disk: Path, drift_request: DriftRequest) -> None:
    assert failed(bench, disk, drift_request) >= 2


def test_extract(bench: Any, disk: Path, extract_request: ExtractRequest) -> None:
    assert failed(bench, disk, extract_request) >= 2
