"""The operator's service account with exactly the rights that the Helm chart gives it."""

from __future__ import annotations

from pathlib import Path

from readapt_cluster.binaries import ensure, path_of
from readapt_cluster.catalog import BY_NAME
from readapt_cluster.commands import run
from readapt_cluster.control_plane import ControlPlane
from readapt_cluster.places import CHECKOUT

CHART = CHECKOUT / "charts" / "readapt"
RELEASE = "readapt"


def render(namespace: str, *arguments: str) -> str:
    """``helm template`` of the chart, installed into ``namespace`` and watching it alone."""
    ensure((BY_NAME["helm"],))
    watched = ("--set", f"watchNamespaces={{{namespace}}}")
    return run([path_of("helm"), "template", RELEASE, CHART, "--namespace", namespace, *watched, *arguments])


def operator_credentials(plane: ControlPlane, namespace: str) -> Path:
    """Applies the chart's service account, roles and bindings; a kubeconfig that acts as that account."""
    plane.kubectl("apply", "--namespace", namespace, "-f", "-", stdin=render(namespace, "-s", "templates/rbac.yaml"))
    return plane.kubeconfig_for(namespace, f"{RELEASE}-operator")
