"""Start components that outlive this process, and wait for each to be ready."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from readapt_cluster import components, processes
from readapt_cluster.components import Credentials, Endpoint
from readapt_cluster.errors import ComponentFailed
from readapt_cluster.processes import Component, alive
from readapt_cluster.waiting import until

_READY_S = 120.0


@dataclass(frozen=True, slots=True)
class Started:
    """A component and its process."""

    component: Component
    pid: int


def start(component: Component) -> Started:
    return Started(component, processes.start(component))


def wait_for(started: Started, ready: Callable[[], bool], timeout_s: float = _READY_S) -> None:
    """Return when `ready`. Raises ComponentFailed with the log's end once it is dead or the time is over."""
    until(lambda: not alive(started.pid) or ready(), timeout_s)
    if not (alive(started.pid) and ready()):
        how = f"is not ready after {timeout_s:.0f} s" if alive(started.pid) else "died"
        raise ComponentFailed(f"{started.component.name} {how}:\n{started.component.tail()}")


def control_plane(state: Path, at: Endpoint, creds: Credentials, kubeconfig: Path, *, with_scheduler: bool) -> None:
    """etcd, kube-apiserver, kube-controller-manager (and kube-scheduler); returns when all are ready."""
    store = start(components.etcd(state, at, creds))
    wait_for(store, lambda: components.etcd_api(at, creds).answers("/readyz"))
    server = start(components.apiserver(state, at, creds))
    wait_for(server, lambda: components.admin_api(at, creds).answers("/readyz"))
    started = [(start(components.controller_manager(state, at, creds, kubeconfig)), at.manager_port)]
    if with_scheduler:
        started.append((start(components.scheduler(state, at, creds, kubeconfig)), at.scheduler_port))
    for component, port in started:
        health = components.local_api(port, creds)
        wait_for(component, lambda health=health: health.answers("/healthz"))  # type: ignore[misc]
