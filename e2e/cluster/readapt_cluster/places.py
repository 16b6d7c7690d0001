"""Where everything lies: the checkout, the per-user cache, the machine-wide state of the node."""

import os
from pathlib import Path

CLUSTER = Path(__file__).resolve().parents[1]
"""The folder `e2e/cluster` of the checkout: Go modules, images, manifests."""

CHECKOUT = CLUSTER.parents[1]
LOCAL = CHECKOUT / ".local"
KUBECONFIG = LOCAL / "kubeconfig"

NODE_STATE = Path("/var/lib/readapt-cluster")
NODE_RUN = Path("/run/readapt-cluster")
NODE_LOCK = Path("/run/lock/readapt-cluster.lock")
LOCAL_STATE = LOCAL / "control-plane"
"""State of `up --control-plane`, which needs no root."""

IMAGE_STORE = NODE_STATE / "containerd"
"""containerd's images: the one part of the node's state that `down` keeps unless told to purge."""


def cache() -> Path:
    """The per-user cache, outside the checkout; `READAPT_CACHE` moves it."""
    if given := os.environ.get("READAPT_CACHE"):
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "readapt"


def private_folder(path: Path) -> Path:
    """Make `path` (and its parents) readable by its owner only, and return it."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)
    return path
