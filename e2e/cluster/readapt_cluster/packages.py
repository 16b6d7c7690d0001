"""Debian packages the node needs; installed when they are missing."""

import shutil
from pathlib import Path

from readapt_cluster.commands import run, succeeds
from readapt_cluster.errors import CommandFailed, Refused
from readapt_cluster.progress import step

NODE = (
    "containerd",
    "runc",
    "containernetworking-plugins",
    "iptables",
    "conntrack",
    "iproute2",
    "buildah",
    "skopeo",
    "busybox-static",
    "socat",
    "ethtool",
    "kmod",
)
BASE_IMAGE = ("buildah", "debootstrap")


def ensure(wanted: tuple[str, ...]) -> None:
    """Install what is missing. Raises Refused on a machine without apt, naming what to install by hand."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-query") is None:
        raise Refused(
            "This machine has no apt. The tool installs Debian packages and looks for files where Debian "
            "puts them; on another distribution use `kind` or any cluster of your own by its context. "
            f"What it would need here: {', '.join(wanted)}."
        )
    absent = [name for name in wanted if not _installed(name)]
    if not absent:
        return
    engine_before = _service_active("containerd")
    apt = ["apt-get", "-o", "DPkg::Lock::Timeout=120"]
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    with step(f"Installing Debian packages: {', '.join(absent)}", "30 s"):
        run([*apt, "update"], env=quiet)
        run([*apt, "install", "--yes", "--no-install-recommends", *absent], env=quiet)
    if "containerd" in absent and not engine_before and _service_active("containerd"):
        # Debian starts the service it installs; the node runs a containerd of its own.
        run(["systemctl", "disable", "--now", "containerd"])


def _installed(name: str) -> bool:
    try:
        return "install ok installed" in run(["dpkg-query", "--show", "--showformat=${Status}", name])
    except CommandFailed:
        return False


def _service_active(name: str) -> bool:
    return Path("/run/systemd/system").exists() and succeeds(["systemctl", "is-active", "--quiet", name])
