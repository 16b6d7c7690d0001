"""Configuration files of the node's components, as data. JSON is YAML, so that is what is written."""

import json
from pathlib import Path
from typing import Any

from readapt_cluster import cgroups, kubeconfig
from readapt_cluster.binaries import path_of
from readapt_cluster.certificates import Pair
from readapt_cluster.components import POD_RANGE, Credentials, Endpoint
from readapt_cluster.health import NODE_NAME, NodePorts
from readapt_cluster.network import BRIDGE, NODE_ADDRESS, POD_SUBNET
from readapt_cluster.places import IMAGE_STORE, NODE_RUN, NODE_STATE
from readapt_cluster.processes import Component

DNS_ADDRESS = "10.96.0.10"
SANDBOX_IMAGE = "localhost/readapt/busybox:1"
SOCKET = NODE_RUN / "containerd.sock"
CONFIG = NODE_STATE / "config"
_KUBELET_PORT = 10250


def containerd() -> Component:
    """An engine of our own beside any that is installed: own root, state, socket and CNI folder."""
    _write(CONFIG / "cni" / "10-readapt.conflist", _cni())
    path = CONFIG / "containerd.toml"
    path.write_text(_containerd_toml())
    return Component("containerd", ("containerd", f"--config={path}"), _log("containerd"))


def kubelet(at: Endpoint, creds: Credentials, ports: NodePorts) -> Component:
    """The node's agent, with a serving certificate for the node's address (logs, exec, port-forward)."""
    client = creds.ca.issue("kubelet", f"system:node:{NODE_NAME}", ["system:nodes"])
    serving = creds.ca.issue("kubelet-serving", f"system:node:{NODE_NAME}", hosts=[NODE_NAME, NODE_ADDRESS])
    config = _write(CONFIG / "kubelet.json", _kubelet(creds, serving, ports))
    flags = (
        f"--config={config}",
        f"--kubeconfig={_kubeconfig('kubelet', at, creds, client)}",
        f"--root-dir={NODE_STATE}/kubelet",
        f"--hostname-override={NODE_NAME}",
        f"--node-ip={NODE_ADDRESS}",
    )
    return Component("kubelet", (str(path_of("kubelet")), *flags), _log("kubelet"))


def kube_proxy(at: Endpoint, creds: Credentials, ports: NodePorts) -> Component:
    """Services by iptables; connection tracking limits stay as the machine has them."""
    client = creds.ca.issue("kube-proxy", "system:kube-proxy")
    config = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": str(_kubeconfig("kube-proxy", at, creds, client))},
        "clusterCIDR": POD_RANGE,
        "hostnameOverride": NODE_NAME,
        "mode": "iptables",
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "iptables": {"minSyncPeriod": "100ms"},
        "nodePortAddresses": [POD_SUBNET],
        "healthzBindAddress": f"127.0.0.1:{ports.proxy_health}",
        "metricsBindAddress": f"127.0.0.1:{ports.proxy_metrics}",
        "oomScoreAdj": 0,
    }
    path = _write(CONFIG / "kube-proxy.json", config)
    return Component("kube-proxy", (str(path_of("kube-proxy")), f"--config={path}"), _log("kube-proxy"))


def _kubelet(creds: Credentials, serving: Pair, ports: NodePorts) -> dict[str, Any]:
    systemd = cgroups.driver() == "systemd"
    config = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": NODE_ADDRESS,
        "port": _KUBELET_PORT,
        "healthzBindAddress": "127.0.0.1",
        "healthzPort": ports.kubelet_health,
        "tlsCertFile": str(serving.certificate),
        "tlsPrivateKeyFile": str(serving.key),
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(creds.ca.pair.certificate)},
        },
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": f"unix://{SOCKET}",
        "clusterDNS": [DNS_ADDRESS],
        "clusterDomain": "cluster.local",
        "cgroupDriver": cgroups.driver(),
        "cgroupRoot": f"/{cgroups.PARENT}.slice" if systemd else f"/{cgroups.PARENT}",
        "failSwapOn": False,
        "oomScoreAdj": 0,
        "podLogsDir": str(NODE_STATE / "log" / "pods"),
        "volumePluginDir": str(NODE_STATE / "kubelet" / "plugins-exec"),
        "serializeImagePulls": False,
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
    }
    return config if cgroups.is_unified() else {**config, "failCgroupV1": False}


def _cni() -> dict[str, Any]:
    subnet = {"subnet": POD_SUBNET, "gateway": NODE_ADDRESS}
    bridge = {
        "type": "bridge",
        "bridge": BRIDGE,
        "isGateway": True,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "dataDir": str(NODE_RUN / "addresses"),
            "ranges": [[subnet]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    return {"cniVersion": "0.4.0", "name": "readapt", "plugins": [bridge]}


def _containerd_toml() -> str:
    """`restrict_oom_score_adj`: without it sandboxes die where the process may not lower oom_score_adj."""
    cri = 'plugins."io.containerd.grpc.v1.cri"'
    return f"""\
version = 2
root = "{IMAGE_STORE}"
state = "{NODE_RUN}/containerd"

[grpc]
address = "{SOCKET}"

[plugins."io.containerd.internal.v1.opt"]
path = "{IMAGE_STORE}/opt"

[{cri}]
sandbox_image = "{SANDBOX_IMAGE}"
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true

[{cri}.cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{CONFIG}/cni"

[{cri}.containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"

[{cri}.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[{cri}.containerd.runtimes.runc.options]
SystemdCgroup = {"true" if cgroups.driver() == "systemd" else "false"}
"""


def _kubeconfig(name: str, at: Endpoint, creds: Credentials, client: Pair) -> Path:
    return kubeconfig.with_certificate(CONFIG / f"{name}.kubeconfig", at.url, creds.ca.pair.certificate, client)


def _write(path: Path, content: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")
    return path


def _log(name: str) -> Path:
    return NODE_STATE / "log" / f"{name}.log"
