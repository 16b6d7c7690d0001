"""Reasons not to touch this machine, each with what to do instead. Nothing here changes anything."""

import os
import socket
from pathlib import Path

from readapt_cluster import disk, network
from readapt_cluster.components import POD_RANGE, SERVICE_RANGE
from readapt_cluster.errors import Refused
from readapt_cluster.leftovers import FOLDERS
from readapt_cluster.places import IMAGE_STORE
from readapt_cluster.processes import everything, of_state

_ENGINES = ("dockerd", "containerd", "kubelet", "k3s", "k3s-server", "rke2", "crio", "kubelite")
_SOCKETS = ("/run/docker.sock", "/run/containerd/containerd.sock", "/run/crio/crio.sock")
_NODE_SPACE_MB = 3_000
"""containerd's copies of the small images, etcd, logs and room for pods; large images come on top."""


def require_root() -> None:
    """Raises Refused unless this process is root."""
    if os.geteuid() != 0:
        raise Refused(
            "A node needs root: network namespaces, mounts, iptables. Run the command with sudo, or start the "
            "control plane alone, which needs no root: `python -m readapt_cluster up --control-plane`."
        )


def require_no_engine() -> None:
    """Raises Refused where another container engine or kubelet runs. Installing packages could already harm it."""
    ours = {process.pid for process in of_state(_ENGINES, FOLDERS)}
    for process in everything():
        if process.program in _ENGINES and process.pid not in ours:
            raise Refused(
                f"Another container engine runs here: {process.program}, pid {process.pid}. Stop it "
                f"(`systemctl stop {process.program}` where it is a service), or use that cluster by its context."
            )
    for path in _SOCKETS:
        if _listens(path):
            raise Refused(f"Something answers at {path}. Stop that engine, or use its cluster by its context.")


def require_network_free() -> None:
    """Raises Refused where iptables holds another Kubernetes or addresses collide. Needs iptables and iproute2."""
    chains = network.kubernetes_chains()
    if chains and not network.chains_are_ours():
        raise Refused(
            f"iptables holds chains of another Kubernetes ({', '.join(chains[:3])}, ...). Use that cluster by "
            "its context, or reset it with its own tool (`kubeadm reset`, then remove its chains)."
        )
    if routes := network.conflicting_routes():
        raise Refused(
            f"The cluster's addresses ({POD_RANGE}, {SERVICE_RANGE}) are in use: "
            f"{'; '.join(routes)}. Take that interface down while the cluster runs, or use another machine."
        )


def require_disk() -> None:
    """Raises Refused where the node's own files would not fit."""
    disk.require(IMAGE_STORE, _NODE_SPACE_MB, "the node (images and state)")


def _listens(path: str) -> bool:
    if not Path(path).exists():
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except OSError:
            return False
    return True
