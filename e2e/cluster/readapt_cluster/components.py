"""The control plane's components as data: which program, which flags, which certificates.

Used by the library for tests, by `up --control-plane` and by the node, which differ only in `Endpoint`.
"""

import csv
import io
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from readapt_cluster.api import Api
from readapt_cluster.binaries import path_of
from readapt_cluster.certificates import Authority, Pair, service_account_keys, write_secret
from readapt_cluster.processes import Component

SERVICE_RANGE = "10.96.0.0/16"
SERVICE_ADDRESS = "10.96.0.1"
POD_RANGE = "10.244.0.0/16"
ISSUER = "https://kubernetes.default.svc.cluster.local"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where one control plane listens."""

    address: str
    """The API server's; loopback, or the node's bridge."""
    port: int
    etcd_port: int
    etcd_peer_port: int
    manager_port: int
    scheduler_port: int

    @classmethod
    def free(cls) -> "Endpoint":
        """Loopback ports that nobody listens on now."""
        return cls("127.0.0.1", *free_ports(5))

    @property
    def url(self) -> str:
        return f"https://{self.address}:{self.port}"


@dataclass(frozen=True, slots=True)
class Credentials:
    """Every certificate of one control plane, in `<state>/pki`."""

    ca: Authority
    serving: Pair
    admin: Pair
    kubelet_client: Pair
    service_accounts: Pair
    etcd_ca: Authority
    etcd: Pair

    @classmethod
    def create(cls, state: Path, address: str) -> "Credentials":
        """Issue what one control plane at `address` needs; authorities and signing keys are kept if there."""
        ca = Authority(state / "pki", "ca")
        # etcd trusts an authority of its own: any client of the API server could read etcd otherwise.
        etcd_ca = Authority(state / "pki" / "etcd", "ca")
        names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"]
        names += [f"{names[-1]}.cluster.local", "localhost"]
        hosts = [*names, "127.0.0.1", SERVICE_ADDRESS, address]
        return cls(
            ca=ca,
            serving=ca.issue("serving", "kube-apiserver", hosts=hosts),
            admin=ca.issue("admin", "readapt-admin", ["system:masters"]),
            kubelet_client=ca.issue("kubelet-client", "kube-apiserver-kubelet-client", ["system:masters"]),
            service_accounts=service_account_keys(state / "pki"),
            etcd_ca=etcd_ca,
            etcd=etcd_ca.issue("etcd", "etcd", hosts=["127.0.0.1", "localhost"]),
        )


def free_ports(count: int) -> list[int]:
    """Distinct loopback TCP ports that are free now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for held in sockets:
            held.bind(("127.0.0.1", 0))
        return [int(held.getsockname()[1]) for held in sockets]
    finally:
        for held in sockets:
            held.close()


def etcd(state: Path, at: Endpoint, creds: Credentials) -> Component:
    """One member, no fsync: its data is not meant to survive the machine."""
    url, peer = f"https://127.0.0.1:{at.etcd_port}", f"http://127.0.0.1:{at.etcd_peer_port}"
    return _component(
        state,
        "etcd",
        "--name=readapt",
        f"--data-dir={state}/etcd",
        f"--listen-client-urls={url}",
        f"--advertise-client-urls={url}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=readapt={peer}",
        "--unsafe-no-fsync",
        "--client-cert-auth",
        f"--trusted-ca-file={creds.etcd_ca.pair.certificate}",
        f"--cert-file={creds.etcd.certificate}",
        f"--key-file={creds.etcd.key}",
        "--log-level=warn",
    )


def apiserver(state: Path, at: Endpoint, creds: Credentials) -> Component:
    """RBAC on, every default admission plugin, users of the token file beside certificates."""
    keys = creds.service_accounts
    return _component(
        state,
        "kube-apiserver",
        f"--bind-address={at.address}",
        f"--advertise-address={at.address}",
        f"--secure-port={at.port}",
        f"--etcd-servers=https://127.0.0.1:{at.etcd_port}",
        f"--etcd-cafile={creds.etcd_ca.pair.certificate}",
        f"--etcd-certfile={creds.etcd.certificate}",
        f"--etcd-keyfile={creds.etcd.key}",
        f"--client-ca-file={creds.ca.pair.certificate}",
        f"--tls-cert-file={creds.serving.certificate}",
        f"--tls-private-key-file={creds.serving.key}",
        f"--token-auth-file={token_file(state)}",
        f"--service-account-issuer={ISSUER}",
        f"--service-account-key-file={keys.certificate}",
        f"--service-account-signing-key-file={keys.key}",
        f"--service-cluster-ip-range={SERVICE_RANGE}",
        f"--kubelet-client-certificate={creds.kubelet_client.certificate}",
        f"--kubelet-client-key={creds.kubelet_client.key}",
        f"--kubelet-certificate-authority={creds.ca.pair.certificate}",
        "--kubelet-preferred-address-types=InternalIP",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged",
        "--endpoint-reconciler-type=" + ("none" if at.address.startswith("127.") else "lease"),
    )


def controller_manager(state: Path, at: Endpoint, creds: Credentials, kubeconfig: Path) -> Component:
    """All controllers, each with its own service account."""
    return _component(
        state,
        "kube-controller-manager",
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        "--bind-address=127.0.0.1",
        f"--secure-port={at.manager_port}",
        f"--tls-cert-file={creds.serving.certificate}",
        f"--tls-private-key-file={creds.serving.key}",
        f"--root-ca-file={creds.ca.pair.certificate}",
        f"--service-account-private-key-file={creds.service_accounts.key}",
        f"--cluster-signing-cert-file={creds.ca.pair.certificate}",
        f"--cluster-signing-key-file={creds.ca.pair.key}",
        f"--service-cluster-ip-range={SERVICE_RANGE}",
        f"--cluster-cidr={POD_RANGE}",
        f"--flex-volume-plugin-dir={state}/flex-volumes",
        "--allocate-node-cidrs",
        "--use-service-account-credentials",
        "--leader-elect=false",
        "--kube-api-qps=200",
        "--kube-api-burst=400",
    )


def scheduler(state: Path, at: Endpoint, creds: Credentials, kubeconfig: Path) -> Component:
    """Only the node needs it."""
    return _component(
        state,
        "kube-scheduler",
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        "--bind-address=127.0.0.1",
        f"--secure-port={at.scheduler_port}",
        f"--tls-cert-file={creds.serving.certificate}",
        f"--tls-private-key-file={creds.serving.key}",
        "--leader-elect=false",
    )


def token_file(state: Path) -> Path:
    """Static bearer tokens of the API server, one `token,user,uid,"groups"` per line."""
    return state / "pki" / "tokens.csv"


def write_tokens(state: Path, tokens: Mapping[tuple[str, tuple[str, ...]], str]) -> None:
    """Write the token file: a token for each (user, groups). The API server reads it when it starts."""
    text = io.StringIO()
    rows = csv.writer(text)
    # The API server refuses an empty file; nobody is told this first token.
    rows.writerow([secrets.token_urlsafe(24), "readapt:nobody", "nobody"])
    for number, ((user, groups), token) in enumerate(tokens.items()):
        rows.writerow([token, user, f"user-{number}", ",".join(groups)])
    write_secret(token_file(state), text.getvalue().encode())


def etcd_api(at: Endpoint, creds: Credentials) -> Api:
    return Api(f"https://127.0.0.1:{at.etcd_port}", creds.etcd_ca.pair.certificate, creds.etcd)


def admin_api(at: Endpoint, creds: Credentials) -> Api:
    return Api(at.url, creds.ca.pair.certificate, creds.admin)


def local_api(port: int, creds: Credentials) -> Api:
    """The controller manager or the scheduler, whose /healthz answers anybody."""
    return Api(f"https://127.0.0.1:{port}", creds.ca.pair.certificate)


def _component(state: Path, name: str, *flags: str) -> Component:
    return Component(name, (str(path_of(name)), *flags), state / "log" / f"{name}.log")
