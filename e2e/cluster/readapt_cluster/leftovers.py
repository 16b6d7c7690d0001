"""Leave nothing behind: used by `down`, by an `up` that fails, and by `up` before it starts.

Everything of ours is recognised by name (state folders, the bridge, the cgroup, the chains), so it works
as well after a run that was killed at any point. Each step may find its work done already.
"""

import shutil
import socket
from collections.abc import Sequence
from pathlib import Path

from readapt_cluster import cgroups, network
from readapt_cluster.commands import succeeds
from readapt_cluster.places import IMAGE_STORE, NODE_RUN, NODE_STATE
from readapt_cluster.processes import of_state, stop

FOLDERS = (NODE_STATE, NODE_RUN)
# In the order in which they have to go: who restarts things first, the store of truth last.
_STOP_ORDER = (
    ("kubelet", "kube-proxy", "kube-scheduler"),
    ("kube-controller-manager",),
    ("kube-apiserver",),
    ("etcd",),
)
_RUNTIME = (("containerd",), ("containerd-shim-runc-v2", "runc", "ctr", "skopeo"))
# Folders that the kubelet and the CNI library make wherever their state lies; removed when nothing is in them.
_FIXED_FOLDERS = tuple(
    Path(folder)
    for folder in (
        "/var/lib/kubelet/device-plugins",
        "/var/lib/kubelet",
        "/var/lib/cni/results",
        "/var/lib/cni",
        "/var/log/containers",
    )
)
_KEPT = (IMAGE_STORE.name, "log")


def found() -> bool:
    """Whether an earlier run left anything but images and logs."""
    programs = [name for group in (*_STOP_ORDER, *_RUNTIME) for name in group]
    return bool(
        of_state(programs, FOLDERS)
        or _mounts()
        or network.chains_are_ours()
        or Path(f"/sys/class/net/{network.BRIDGE}").exists()
        or (NODE_STATE.exists() and any(entry.name not in _KEPT for entry in NODE_STATE.iterdir()))
    )


def may_be_there() -> bool:
    """As ``found``, for somebody who may not look everywhere."""
    try:
        return found()
    except PermissionError:
        return True


def clear(*, purge: bool = False) -> None:
    """End the node: processes, pods, mounts, cgroups, network, state. Images and logs stay unless `purge`."""
    for group in _STOP_ORDER:
        _stop(group)
    cgroups.clear()
    for runtime in _RUNTIME:
        _stop(runtime)
    for mount in _mounts():
        if not succeeds(["umount", mount]):
            succeeds(["umount", "--lazy", mount])
    cgroups.clear()
    network.clear(NODE_STATE)
    _remove_pod_log_links()
    _remove_files(purge)


def _stop(programs: Sequence[str]) -> None:
    stop([process.pid for process in of_state(programs, FOLDERS)], grace_s=3.0)


def _mounts() -> list[Path]:
    """Mount points below our folders, innermost first."""
    points = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = Path(line.split()[4].encode().decode("unicode_escape"))
        if any(folder in point.parents for folder in FOLDERS):
            points.append(point)
    return points[::-1]


def _remove_pod_log_links() -> None:
    """The kubelet's links in /var/log/containers, a folder it cannot be told to put elsewhere."""
    folder = Path("/var/log/containers")
    if not folder.exists():
        return
    for link in folder.iterdir():
        if link.is_symlink() and NODE_STATE in link.readlink().parents:
            link.unlink()


def _is_dead_socket(path: Path) -> bool:
    """Whether nothing listens there: the kubelet leaves its socket for device plugins behind when killed."""
    if not path.is_socket():
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            return True
    return False


def _remove_files(purge: bool) -> None:
    shutil.rmtree(NODE_RUN, ignore_errors=True)
    for record in Path("/var/lib/cni").glob("results/*"):
        if str(NODE_RUN) in record.read_text(errors="replace"):
            record.unlink()
    for folder in _FIXED_FOLDERS:
        if folder.exists() and not any(entry for entry in folder.iterdir() if not _is_dead_socket(entry)):
            shutil.rmtree(folder)
    if purge:
        shutil.rmtree(NODE_STATE, ignore_errors=True)
    elif NODE_STATE.exists():
        for entry in NODE_STATE.iterdir():
            if entry.name in _KEPT:
                continue
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink()
