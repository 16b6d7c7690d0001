"""The stage: a local cluster, the two images, the volumes, and Readapt installed by Helm."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from readapt_cluster import binaries
from readapt_demo import manifests
from readapt_demo.cast import Cast
from readapt_demo.kubectl import Kubectl

Say = Callable[[str], None]
OPERATOR_NAMESPACE = "readapt-system"
IMAGES = ("localhost/readapt/operator:dev", "localhost/readapt/runtime:dev")
_POD_USER = 65532


def volumes_root() -> Path:
    """Where the claims' folders lie on this machine."""
    return Path("/var/lib/readapt-demo")


def build_images(checkout: Path) -> None:
    """``make images`` without make."""
    subprocess.run([checkout / "scripts" / "build-images.sh"], check=True, cwd=checkout)


def start_cluster(checkout: Path) -> None:
    """A node on this machine with both images loaded."""
    tool: list[str | Path] = [checkout / ".venv" / "bin" / "python", "-m", "readapt_cluster"]
    subprocess.run([*tool, "up"], check=True, cwd=checkout)
    for image in IMAGES:
        subprocess.run([*tool, "load", image], check=True, cwd=checkout)


def kubectl(checkout: Path) -> Kubectl:
    """kubectl of the cluster's own version on the local kubeconfig."""
    return Kubectl(binaries.path_folder() / "kubectl", checkout / ".local" / "kubeconfig")


def lay_out(cast: Cast, kube: Kubectl) -> Path:
    """Empty store and filled sources volume, with their claims; returns the store's folder."""
    root = volumes_root()
    shutil.rmtree(root, ignore_errors=True)
    sources, store = root / "sources", root / "store"
    store.mkdir(parents=True)
    for name, folder in cast.folders().items():
        _link_tree(folder, sources / name)
    # hostPath volumes ignore fsGroup.
    os.chown(store, _POD_USER, _POD_USER)
    kube.apply(manifests.volumes(str(sources), str(store)))
    return store


def _link_tree(source: Path, target: Path) -> None:
    """Hard links where the file system allows, copies elsewhere."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copytree(source, target, copy_function=os.link)
    except OSError:
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
    for entry in target.rglob("*"):
        # Libraries save weights for their owner alone; pods read them as another user.
        entry.chmod(0o755 if entry.is_dir() else 0o644)


def uninstall(kube: Kubectl) -> None:
    """``helm uninstall``; CRDs and what users applied stay."""
    helm = binaries.path_folder() / "helm"
    words = [helm, "--kubeconfig", kube.kubeconfig, "uninstall", "readapt", "--namespace", OPERATOR_NAMESPACE, "--wait"]
    subprocess.run([str(word) for word in words], check=True)


def install(checkout: Path, kube: Kubectl) -> None:
    """``helm upgrade --install`` of the chart, watching the demo's namespace alone."""
    helm = binaries.path_folder() / "helm"
    command = [
        helm,
        "--kubeconfig",
        kube.kubeconfig,
        "upgrade",
        "--install",
        "readapt",
        checkout / "charts" / "readapt",
    ]
    command += ["--namespace", OPERATOR_NAMESPACE, "--create-namespace", "--wait", "--timeout", "180s"]
    command += ["--set", f"watchNamespaces={{{manifests.NAMESPACE}}}"]
    command += ["--set", f"images.operator={IMAGES[0]},images.runtime={IMAGES[1]},images.pullPolicy=Never"]
    subprocess.run([str(word) for word in command], check=True)
