"""A disk that is really full: the store lies on a small tmpfs, filled so far that some write of the Job fails."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from readapt_api.jobs import DriftRequest, ExtractRequest, FetchRequest, FetchRole, Request
from readapt_runtime.store import Store

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]
DISK_MIB = 64
LEFT_KIB = (0, 8, 64, 256)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "readapt-test", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _fill(disk: Path, left: int) -> Path:
    """All but ``left`` bytes."""
    filler = disk / "filler"
    status = os.statvfs(disk)
    with filler.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, max(1, status.f_bavail * status.f_frsize - left))
    return filler


def _digest(summary: Any) -> str:
    if summary.drift is not None:
        return str(summary.drift.digest)
    if summary.fetch is not None:
        return str(summary.fetch.digest)
    return str(summary.outcomes[0].variant)


def _suffers(bench: Any, disk: Path, request: Request) -> int:
    """How many levels were too full; after each the Job ends as it does where there is room."""
    undisturbed = bench.run(request)
    assert undisturbed.code == 0, undisturbed.summary.message
    failed = 0
    for left in LEFT_KIB:
        store = Store(disk / "store")
        shutil.copytree(bench.folder / "before", store.root)
        there = type(bench)(bench.folder, store)
        filler = _fill(disk, left << 10)
        ended = there.run(request)
        if ended.code:
            failed += 1
            assert (ended.code, ended.summary.reason) == (75, "StoreFull"), left
            assert not list((store.root / "tmp").glob("[!.]*")), left
        filler.unlink()
        again = there.run(request)
        assert again.code == 0, again.summary.message
        assert _digest(again.summary) == _digest(undisturbed.summary), left
        shutil.rmtree(store.root)
    return failed


def _remember(bench: Any) -> None:
    bench.store.root.mkdir(exist_ok=True)
    shutil.copytree(bench.store.root, bench.folder / "before")


def test_fetch(bench: Any, disk: Path, source: Any) -> None:
    _remember(bench)
    assert _suffers(bench, disk, FetchRequest(role=FetchRole.BASE, sources=(source("v1"),))) == len(LEFT_KIB)


def test_drift(bench: Any, disk: Path, drift_request: DriftRequest) -> None:
    _remember(bench)
    assert _suffers(bench, disk, drift_request) >= 2


def test_extract(bench: Any, disk: Path, extract_request: ExtractRequest) -> None:
    _remember(bench)
    assert _suffers(bench, disk, extract_request) >= 2
