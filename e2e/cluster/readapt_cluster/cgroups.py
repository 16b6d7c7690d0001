"""The cgroup `/readapt` that holds every pod: make it, empty it, remove it.

On cgroup v1 (and hybrid) it exists once per hierarchy; on cgroup v2 once. Only the first was tried.
"""

import os
import signal
from pathlib import Path

from readapt_cluster.waiting import until

PARENT = "readapt"
_ROOT = Path("/sys/fs/cgroup")


def is_unified() -> bool:
    """Whether the machine runs on cgroup v2 alone."""
    return (_ROOT / "cgroup.controllers").exists()


def driver() -> str:
    """The kubelet's and runc's cgroup driver: the machine's own."""
    return "systemd" if is_unified() and Path("/run/systemd/system").exists() else "cgroupfs"


def create() -> None:
    """Make the parent in every hierarchy; the kubelet refuses to start without it."""
    for folder in _parents():
        folder.mkdir(exist_ok=True)


def clear() -> None:
    """Kill every process below the parent and remove it."""
    parents = [folder for folder in _parents() if folder.exists()]
    until(lambda: not _kill(parents), 10.0)
    for parent in parents:
        for folder, _, _ in os.walk(parent, topdown=False):
            until(lambda folder=folder: _removed(Path(folder)), 5.0)  # type: ignore[misc]


def _parents() -> list[Path]:
    if is_unified():
        return [_ROOT / (f"{PARENT}.slice" if driver() == "systemd" else PARENT)]
    return [hierarchy / PARENT for hierarchy in sorted(_ROOT.iterdir()) if (hierarchy / "cgroup.procs").exists()]


def _kill(parents: list[Path]) -> bool:
    """Whether there was anything left to kill."""
    pids = set()
    for parent in parents:
        # A walk passes over folders that go meanwhile; rglob does not.
        for folder, _, _ in os.walk(parent):
            try:
                pids |= {int(line) for line in (Path(folder) / "cgroup.procs").read_text().split()}
            except OSError:
                continue
    for pid in pids - {0, os.getpid()}:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return bool(pids)


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
