"""A control plane without nodes, for tests: etcd, kube-apiserver and kube-controller-manager.

    with ControlPlane(tmp_path) as cp:
        cp.kubectl("apply", "-f", "manifests/")

It listens on free loopback ports, so several run beside each other and beside a node. Objects behave as
on a real cluster (Jobs get pods, owners collect their dependents, namespaces end); pods stay Pending.
"""

import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from readapt_cluster import components, kubeconfig
from readapt_cluster.api import is_conflict
from readapt_cluster.binaries import ensure, path_folder, path_of
from readapt_cluster.catalog import CONTROL_PLANE
from readapt_cluster.certificates import require_cryptography
from readapt_cluster.commands import run
from readapt_cluster.components import Credentials, Endpoint
from readapt_cluster.errors import ComponentFailed
from readapt_cluster.guardian import Guardian
from readapt_cluster.places import private_folder
from readapt_cluster.processes import Component, alive, start, stop
from readapt_cluster.waiting import until

_READY_S = 90.0


class ControlPlane:
    """One control plane; nothing runs before `start` (or `with`), nothing after `stop`.

    `state_dir` takes certificates, logs (`state_dir/log/*.log`) and etcd's data; it stays after `stop`.
    Its processes die with this one, also when it is killed.
    """

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir.resolve()
        self.kubeconfig = self.state_dir / "kubeconfig"
        """The administrator's."""
        self._at = Endpoint.free()
        self._running: dict[str, int] = {}
        self._tokens: dict[tuple[str, tuple[str, ...]], str] = {}

    def __enter__(self) -> "ControlPlane":
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return self._at.url

    @property
    def ca_file(self) -> Path:
        """Certificate of the authority that signed the API server's."""
        return self.state_dir / "pki" / "ca.crt"

    @property
    def env(self) -> dict[str, str]:
        """Environment variables for a child that is to be this cluster's administrator."""
        path = f"{path_folder()}{os.pathsep}{os.environ.get('PATH', '')}"
        return {"KUBECONFIG": str(self.kubeconfig), "PATH": path}

    def start(self) -> None:
        """Build what is missing, start all three, return when requests and controllers are served.

        Raises ComponentFailed with the end of a log, BuildFailed, or Refused.
        """
        require_cryptography()
        ensure(CONTROL_PLANE)
        private_folder(self.state_dir)
        self._guardian = Guardian()
        self._creds = creds = Credentials.create(self.state_dir, self._at.address)
        self._admin = components.admin_api(self._at, creds)
        kubeconfig.with_certificate(self.kubeconfig, self.url, self.ca_file, creds.admin)
        components.write_tokens(self.state_dir, self._tokens)
        etcd = components.etcd(self.state_dir, self._at, creds)
        self._start(etcd, lambda: components.etcd_api(self._at, creds).answers("/readyz"))
        self.start_apiserver()
        self.start_controller_manager()
        self._await(
            "kube-controller-manager",
            lambda: self._admin.answers("/api/v1/namespaces/default/serviceaccounts/default"),
        )

    def stop(self) -> None:
        """End every process; safe to call twice."""
        for name in ("kube-controller-manager", "kube-apiserver", "etcd"):
            self._stop(name)
        if hasattr(self, "_guardian"):
            self._guardian.close()
            del self._guardian

    def start_apiserver(self) -> None:
        """Start the API server on its old port and wait until it is ready."""
        server = components.apiserver(self.state_dir, self._at, self._creds)
        self._start(server, lambda: self._admin.answers("/readyz"))

    def stop_apiserver(self) -> None:
        """An outage: clients see refused connections until `start_apiserver`."""
        self._stop("kube-apiserver")

    def restart_apiserver(self) -> None:
        """Stop and start; every watch ends, objects stay."""
        self.stop_apiserver()
        self.start_apiserver()

    def start_controller_manager(self) -> None:
        """Start the controllers and wait until they report to be healthy."""
        manager = components.controller_manager(self.state_dir, self._at, self._creds, self.kubeconfig)
        health = components.local_api(self._at.manager_port, self._creds)
        self._start(manager, lambda: health.answers("/healthz"))

    def stop_controller_manager(self) -> None:
        """Freeze Jobs, Deployments, garbage collection and namespaces until it is started again."""
        self._stop("kube-controller-manager")

    def kubectl(self, *words: str, stdin: str | None = None) -> str:
        """Run kubectl as administrator; its stdout. Raises CommandFailed."""
        return run([path_of("kubectl"), *words], stdin=stdin, env=self.env, timeout_s=120)

    def token_for(self, user: str, groups: Sequence[str] = ()) -> str:
        """A bearer token for `user` in `groups`.

        For `system:serviceaccount:NAMESPACE:NAME` (made if absent) a real service account token, valid for
        an hour. For any other new user the API server is restarted once, as static tokens are read at its
        start; where a certificate will do, `kubeconfig_for_user` needs no restart.
        """
        parts = user.split(":")
        if parts[:2] == ["system", "serviceaccount"] and len(parts) == 4:
            return self._service_account_token(parts[2], parts[3])
        key = (user, tuple(groups))
        if key not in self._tokens:
            self._tokens[key] = secrets.token_urlsafe(24)
            components.write_tokens(self.state_dir, self._tokens)
            self.restart_apiserver()
        return self._tokens[key]

    def kubeconfig_for(self, namespace: str, service_account: str) -> Path:
        """A kubeconfig that acts as the service account (made if absent), its namespace as default."""
        token = self._service_account_token(namespace, service_account)
        path = self.state_dir / "kubeconfigs" / f"{namespace}.{service_account}"
        return kubeconfig.with_token(path, self.url, self.ca_file, token, namespace)

    def kubeconfig_for_user(self, user: str, groups: Sequence[str] = ()) -> Path:
        """A kubeconfig with a client certificate for `user` in `groups`."""
        name = "".join(letter if letter.isalnum() else "-" for letter in user)
        pair = self._creds.ca.issue(f"user-{name}", user, groups)
        return kubeconfig.with_certificate(self.state_dir / "kubeconfigs" / name, self.url, self.ca_file, pair)

    def log(self, component: str) -> str:
        """Everything `etcd`, `kube-apiserver` or `kube-controller-manager` has logged so far."""
        return (self.state_dir / "log" / f"{component}.log").read_text(errors="replace")

    def _service_account_token(self, namespace: str, name: str) -> str:
        accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"
        self._create_if_absent("/api/v1/namespaces", {"metadata": {"name": namespace}})
        self._create_if_absent(accounts, {"metadata": {"name": name}})
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        return str(self._admin.post(f"{accounts}/{name}/token", request)["status"]["token"])

    def _create_if_absent(self, path: str, body: dict[str, Any]) -> None:
        try:
            self._admin.post(path, body)
        except OSError as error:
            if not is_conflict(error):
                raise

    def _start(self, component: Component, ready: Callable[[], bool]) -> None:
        pid = start(component)
        self._guardian.watch(pid)
        self._running[component.name] = pid
        self._await(component.name, ready)

    def _await(self, name: str, ready: Callable[[], bool]) -> None:
        """Return when `ready`; fail as soon as the component is dead, or after the deadline."""
        pid = self._running[name]
        until(lambda: not alive(pid) or ready(), _READY_S)
        if not (alive(pid) and ready()):
            how = "is not ready after its deadline" if alive(pid) else "died"
            tail = Component(name, (), self.state_dir / "log" / f"{name}.log").tail()
            raise ComponentFailed(f"{name} {how}:\n{tail}")

    def _stop(self, name: str) -> None:
        if name in self._running:
            pid = self._running.pop(name)
            # The API server stops listening at once, then waits for open watches far longer than a test can.
            stop([pid], grace_s=1.0)
            self._guardian.forget(pid)
