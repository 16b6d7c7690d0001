"""One table: every component, its pid, whether it is ready, since when."""

from dataclasses import dataclass
from pathlib import Path

from readapt_cluster import images, standalone
from readapt_cluster.commands import succeeds
from readapt_cluster.health import Check, Layout, checks
from readapt_cluster.leftovers import FOLDERS
from readapt_cluster.places import LOCAL_STATE, NODE_STATE
from readapt_cluster.processes import Running, age, of_state

_NODE = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "containerd",
    "kubelet",
    "kube-proxy",
)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    component: str
    pid: str
    ready: str
    since: str


def rows() -> list[Row]:
    """The control plane alone if it is up, the node otherwise; every component is named, running or not."""
    if alone := standalone.processes():
        asked = _checks(LOCAL_STATE)
        return [_row(name, alone, asked.get(name)) for name in reversed(standalone.PROGRAMS)]
    running = of_state(_NODE, FOLDERS)
    asked = {**_checks(NODE_STATE), "containerd": lambda: succeeds([*images.CTR, "version"])}
    dns = asked.get("coredns")
    pod = Row("coredns (pod)", "-", "yes" if dns is not None and dns() else "no", "-")
    return [*(_row(name, running, asked.get(name)) for name in _NODE), pod]


def text(table: list[Row]) -> str:
    """The table in aligned columns."""
    lines = [("COMPONENT", "PID", "READY", "SINCE")]
    lines += [(row.component, row.pid, row.ready, row.since) for row in table]
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines) + "\n"


def _row(name: str, running: list[Running], ready: Check | None) -> Row:
    process = next((found for found in running if found.program == name), None)
    if process is None:
        return Row(name, "-", "no", "-")
    verdict = "unknown" if ready is None else "yes" if ready() else "no"
    return Row(name, str(process.pid), verdict, age(process))


def _checks(state: Path) -> dict[str, Check]:
    """Empty where nothing was started, or where its certificates may not be read."""
    layout = Layout.read(state)
    return {} if layout is None else dict(checks(state, layout))
