"""How to ask each component whether it is ready, from nothing but its state folder."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from readapt_cluster.api import Api
from readapt_cluster.certificates import Pair
from readapt_cluster.components import Endpoint, free_ports

NODE_NAME = "readapt"

Check = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class NodePorts:
    """Loopback ports of the node's agents."""

    kubelet_health: int
    proxy_health: int
    proxy_metrics: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Where one run listens, kept in its state folder for later commands."""

    endpoint: Endpoint
    ports: NodePorts

    @classmethod
    def for_node(cls, address: str, port: int) -> "Layout":
        free = free_ports(7)
        return cls(Endpoint(address, port, *free[:4]), NodePorts(*free[4:]))

    @classmethod
    def for_loopback(cls) -> "Layout":
        return cls(Endpoint.free(), NodePorts(0, 0, 0))

    @classmethod
    def read(cls, state: Path) -> "Layout | None":
        """The one saved in `state`; None where there is none or it may not be read."""
        try:
            saved = json.loads((state / "layout.json").read_text())
        except (FileNotFoundError, PermissionError):
            return None
        return cls(Endpoint(**saved["endpoint"]), NodePorts(**saved["ports"]))

    def save(self, state: Path) -> None:
        (state / "layout.json").write_text(json.dumps(asdict(self)))


def admin_api(state: Path, at: Endpoint) -> Api:
    """The API server as its administrator."""
    pki = state / "pki"
    return Api(at.url, pki / "ca.crt", Pair(pki / "admin.crt", pki / "admin.key"))


def checks(state: Path, layout: Layout) -> Mapping[str, Check]:
    """By component: a question that any process with access to `state` can ask."""
    at, ports = layout.endpoint, layout.ports
    ca, etcd = state / "pki" / "ca.crt", state / "pki" / "etcd"
    admin = admin_api(state, at)
    store = Api(f"https://127.0.0.1:{at.etcd_port}", etcd / "ca.crt", Pair(etcd / "etcd.crt", etcd / "etcd.key"))
    manager = Api(f"https://127.0.0.1:{at.manager_port}", ca)
    scheduler = Api(f"https://127.0.0.1:{at.scheduler_port}", ca)
    proxy = Api(f"http://127.0.0.1:{ports.proxy_health}", ca)
    return {
        "etcd": lambda: store.answers("/readyz"),
        "kube-apiserver": lambda: admin.answers("/readyz"),
        "kube-controller-manager": lambda: manager.answers("/healthz"),
        "kube-scheduler": lambda: scheduler.answers("/healthz"),
        "kubelet": lambda: node_is_ready(admin),
        "kube-proxy": lambda: proxy.answers("/healthz"),
        "coredns": lambda: dns_is_available(admin),
    }


def node_is_ready(api: Api) -> bool:
    """Whether the node reports the condition Ready."""
    try:
        status = api.get(f"/api/v1/nodes/{NODE_NAME}")["status"]
    except (OSError, KeyError):
        return False
    return any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", ()))


def dns_is_available(api: Api) -> bool:
    """Whether the name server's Deployment has an available replica."""
    try:
        deployment = api.get("/apis/apps/v1/namespaces/kube-system/deployments/coredns")
    except OSError:
        return False
    return int(deployment.get("status", {}).get("availableReplicas", 0)) > 0
