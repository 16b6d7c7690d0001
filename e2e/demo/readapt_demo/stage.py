"""The stage: a local cluster, the two images, the volumes, and Readapt installed by Helm."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from readapt_cluster import binaries, catalog, disk, preflight
from readapt_demo import manifests
from readapt_demo.cast import Cast
from readapt_demo.kubectl import Kubectl

Say = Callable[[str], None]
OPERATOR_NAMESPACE = "readapt-system"
IMAGES = ("localhost/readapt/operator:dev", "localhost/readapt/runtime:dev")
_DEPENDENCIES = "localhost/readapt/runtime-deps"
_POD_USER = 65532
_FIRST_SPACE_MB, _SPACE_MB = 36_000, 6_000
"""Measured: 32 GB are taken the first time, most of them by copies of the runtime image and by build caches."""


def volumes_root() -> Path:
    """Where the claims' folders lie on this machine."""
    return Path("/var/lib/readapt-demo")


def check_machine() -> None:
    """Refuses before minutes are spent: no root, another engine in use, too little disk. Raises Refused."""
    preflight.require_root()
    preflight.require_no_engine()
    first_time = bool(binaries.missing(catalog.ALL)) or not _has_dependency_image()
    disk.require(volumes_root(), _FIRST_SPACE_MB if first_time else _SPACE_MB, "images, models and build caches")


def _has_dependency_image() -> bool:
    """Whether buildah holds the large image that both the demo and the node's tests start from."""
    return shutil.which("buildah") is not None and bool(_image_id("--filter", f"reference={_DEPENDENCIES}"))


def _image_id(*which: str) -> str:
    """Of a name or filter in buildah's storage; empty when there is none."""
    listed = ["buildah", "images", "--storage-driver", "overlay", "--quiet", *which]
    return subprocess.run(listed, capture_output=True, text=True, check=False).stdout.strip()


def build_images(checkout: Path) -> None:
    """``make images`` without make."""
    subprocess.run([checkout / "scripts" / "build-images.sh"], check=True, cwd=checkout)


def start_cluster(checkout: Path) -> None:
    """A node on this machine with both images loaded, and the programs that talk to it."""
    binaries.ensure(catalog.ALL)
    tool: list[str | Path] = [checkout / ".venv" / "bin" / "python", "-m", "readapt_cluster"]
    subprocess.run([*tool, "up"], check=True, cwd=checkout)
    for image in IMAGES:
        subprocess.run([*tool, "load", image], check=True, cwd=checkout)


def kubectl(checkout: Path) -> Kubectl:
    """kubectl of the cluster's own version on the local kubeconfig."""
    return Kubectl(binaries.path_of("kubectl"), checkout / ".local" / "kubeconfig")


def lay_out(cast: Cast, kube: Kubectl) -> Path:
    """Empty store and filled sources volume, with their claims; returns the store's folder.

    What an earlier run left in the cluster goes first: its objects say that the old store holds their artifacts.
    """
    kube("delete", "namespace", manifests.NAMESPACE, "--ignore-not-found", "--wait", "--timeout=120s", timeout_s=150)
    claims = [f"{manifests.NAMESPACE}-{claim}" for claim in (manifests.SOURCES_CLAIM, manifests.STORE_CLAIM)]
    kube("delete", "persistentvolume", *claims, "--ignore-not-found", "--wait", "--timeout=60s", timeout_s=90)
    root = volumes_root()
    shutil.rmtree(root, ignore_errors=True)
    sources, store = root / "sources", root / "store"
    store.mkdir(parents=True)
    for name, folder in cast.folders().items():
        shutil.copytree(folder, sources / name, copy_function=shutil.copyfile)
    for name, file in cast.files().items():
        (sources / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, sources / name)
    # Libraries save weights for their owner alone; pods read them as another user.
    for entry in sources.rglob("*"):
        entry.chmod(0o755 if entry.is_dir() else 0o644)
    # hostPath volumes ignore fsGroup.
    os.chown(store, _POD_USER, _POD_USER)
    kube.apply(manifests.volumes(str(sources), str(store)))
    return store


def uninstall(kube: Kubectl) -> None:
    """``helm uninstall``; CRDs and what users applied stay."""
    _helm(kube, "uninstall", "readapt", "--wait")


def install(checkout: Path, kube: Kubectl) -> None:
    """``helm upgrade --install`` of the chart, watching the demo's namespace alone.

    An image of new code has the old one's name, so the operator's pod is told its id: else an operator that runs
    already would go on.
    """
    _helm(
        kube,
        *("upgrade", "--install", "readapt", checkout / "charts" / "readapt", "--create-namespace"),
        *("--wait", "--timeout", "180s"),
        *("--set", f"watchNamespaces={{{manifests.NAMESPACE}}}"),
        *("--set", f"images.operator={IMAGES[0]},images.runtime={IMAGES[1]},images.pullPolicy=Never"),
        *("--set-string", f"operator.podAnnotations.image-id={_image_id(IMAGES[0])}"),
    )


def _helm(kube: Kubectl, *words: str | Path) -> None:
    command = [binaries.path_of("helm"), "--kubeconfig", kube.kubeconfig, "--namespace", OPERATOR_NAMESPACE, *words]
    subprocess.run([str(word) for word in command], check=True)
