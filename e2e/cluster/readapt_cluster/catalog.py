"""The programs the tool builds, in the order in which they are needed."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from readapt_cluster.places import CLUSTER

MODULES = CLUSTER / "go"


@dataclass(frozen=True, slots=True)
class Tool:
    """One program: a package of an upstream Go module, pinned by a small go.mod of ours."""

    name: str
    module: str
    """Folder under `e2e/cluster/go`."""
    source: str
    """Upstream module whose version is the program's version."""
    package: str
    usually: str
    """What a cold build takes on two cores."""

    @property
    def folder(self) -> Path:
        return MODULES / self.module

    @property
    def version(self) -> str:
        found = re.search(rf"^\s+{re.escape(self.source)} (v\S+)", self._go_mod(), re.MULTILINE)
        if not found:
            raise ValueError(f"{self.folder}/go.mod does not require {self.source}")
        return found[1]

    @property
    def digest(self) -> str:
        """Changes with any dependency of the program."""
        sums = (self.folder / "go.sum").read_bytes()
        return hashlib.sha256(self._go_mod().encode() + sums).hexdigest()[:12]

    @property
    def ldflags(self) -> str:
        """Version stamps, without which `kubectl version` and Helm cannot parse what they report."""
        stamps: list[str] = []
        if self.source == "k8s.io/kubernetes":
            major, minor, _ = self.version.lstrip("v").split(".", 2)
            values = (f"gitVersion={self.version}", f"gitMajor={major}", f"gitMinor={minor}", "gitTreeState=clean")
            for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version"):
                stamps += [f"{package}.{value}" for value in values]
        elif self.name == "helm":
            stamps = [f"helm.sh/helm/v4/internal/version.version={self.version}"]
        return " ".join(["-s", "-w", *(f"-X {stamp}" for stamp in stamps)])

    def _go_mod(self) -> str:
        return (self.folder / "go.mod").read_text()


def _kubernetes(name: str, usually: str) -> Tool:
    return Tool(name, "kubernetes", "k8s.io/kubernetes", f"k8s.io/kubernetes/cmd/{name}", usually)


CONTROL_PLANE = (
    Tool("etcd", "kubernetes", "go.etcd.io/etcd/server/v3", "go.etcd.io/etcd/server/v3", "100 s"),
    _kubernetes("kube-apiserver", "3 to 5 minutes"),
    _kubernetes("kubectl", "60 s"),
    _kubernetes("kube-controller-manager", "1 to 3 minutes"),
)
CLIENTS = (Tool("helm", "helm", "helm.sh/helm/v4", "helm.sh/helm/v4/cmd/helm", "2 to 7 minutes"),)
NODE = (
    Tool("coredns", "coredns", "github.com/coredns/coredns", "github.com/coredns/coredns", "2 to 9 minutes"),
    _kubernetes("kubelet", "90 s"),
    _kubernetes("kube-proxy", "20 s"),
    _kubernetes("kube-scheduler", "20 s"),
)
ALL = CONTROL_PLANE + CLIENTS + NODE
BY_NAME = {tool.name: tool for tool in ALL}
