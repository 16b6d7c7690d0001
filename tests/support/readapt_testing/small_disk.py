"""A disk that is really full: the store lies on a small tmpfs, filled so far that some write of a Job fails.

Needs root, who may mount.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from readapt_api.jobs import Request, Summary
from readapt_runtime.jobs.main import run
from readapt_runtime.store import Store

_TRANSIENT = 75
_FOLDERS = ("artifacts", "progress", "results", "tmp")


@dataclass(frozen=True, slots=True)
class Shortage:
    """One run on the full disk, and the one that went on when there was room again."""

    left_kib: int
    failed: bool
    kept: list[str]
    """In progress/ after the first."""


@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[Path]:
    """``folder``, made and mounted; unmounted at the end even if something there is still open."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "readapt-test", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def suffer(disk: Path, scratch: Path, before: Path, request: Request, levels_kib: Sequence[int]) -> list[Shortage]:
    """Runs the Job on a copy of the store ``before`` with that much room left, then again with all of it.

    Asserts that a run without room ends as StoreFull with nothing but progress left over, and that the next one ends
    with the digest of an undisturbed Job.
    """
    code, undisturbed = _job(Store(Path(shutil.copytree(before, scratch / "undisturbed"))), scratch, request)
    assert code == 0, undisturbed.message
    return [_short(disk, scratch, before, request, level, _digest(undisturbed)) for level in levels_kib]


def _short(disk: Path, scratch: Path, before: Path, request: Request, left_kib: int, digest: str) -> Shortage:
    store = Store(Path(shutil.copytree(before, disk / "store")))
    for name in _FOLDERS:
        (store.root / name).mkdir(exist_ok=True)
    there = _artifacts(store)
    filler = _fill(disk, left_kib << 10)
    code, summary = _job(store, scratch, request)
    kept = sorted(path.name for path in (store.root / "progress").iterdir())
    if code:
        assert (code, summary.reason) == (_TRANSIENT, "StoreFull"), (left_kib, code, summary.message)
        assert not list((store.root / "tmp").glob("[!.]*")), left_kib
    else:
        assert _digest(summary) == digest, left_kib
    assert all(store.has(f"sha256:{name}") for name in _artifacts(store) - there), left_kib
    filler.unlink()
    again, ended = _job(store, scratch, request)
    assert again == 0, (left_kib, ended.message)
    assert _digest(ended) == digest, left_kib
    assert not list((store.root / "progress").iterdir()), left_kib
    shutil.rmtree(store.root)
    return Shortage(left_kib, code != 0, kept)


def _artifacts(store: Store) -> set[str]:
    return {path.name for path in (store.root / "artifacts").iterdir()}


def _fill(disk: Path, left: int) -> Path:
    """All but ``left`` bytes."""
    filler = disk / "filler"
    status = os.statvfs(disk)
    with filler.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, max(1, status.f_bavail * status.f_frsize - left))
    return filler


def _job(store: Store, scratch: Path, request: Request) -> tuple[int, Summary]:
    """In this process, whose answer to SIGTERM a Job changes."""
    path, message = scratch / "request.json", scratch / "termination-log"
    path.write_text(json.dumps(request.to_wire()))
    handler = signal.getsignal(signal.SIGTERM)
    try:
        arguments = [request.kind.value, "--request", str(path), "--store", str(store.root)]
        code = run([*arguments, "--termination-log", str(message)])
    finally:
        signal.signal(signal.SIGTERM, handler)
    return code, Summary.model_validate_json(message.read_bytes())


def _digest(summary: Summary) -> str:
    if summary.drift is not None:
        return str(summary.drift.digest)
    if summary.fetch is not None:
        return str(summary.fetch.digest)
    return str(summary.outcomes[0].variant)
