"""The node of the local cluster: pods, names, services, logs; and nothing left once it is down.

Needs root and a machine on which no node is up: these tests take theirs down.
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from readapt_cluster import leftovers, node, packages, status
from readapt_cluster.binaries import path_of
from readapt_cluster.commands import run
from readapt_cluster.errors import Refused
from readapt_cluster.node_config import SANDBOX_IMAGE
from readapt_cluster.places import KUBECONFIG, NODE_RUN, NODE_STATE
from readapt_cluster.processes import everything, of_state
from readapt_cluster.waiting import until

pytestmark = pytest.mark.cluster

WEB = f"""
apiVersion: v1
kind: Pod
metadata: {{name: web, labels: {{app: web}}}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: web
      image: {SANDBOX_IMAGE}
      imagePullPolicy: Never
      command: [sh, -c, "mkdir /www; echo hello > /www/index.html; echo started; exec httpd -f -p 8080 -h /www"]
      readinessProbe: {{tcpSocket: {{port: 8080}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{selector: {{app: web}}, ports: [{{port: 80, targetPort: 8080}}]}}
"""


@dataclass(frozen=True)
class Traces:
    """What a node could leave on a machine."""

    interfaces: frozenset[str]
    namespaces: frozenset[str]
    mounts: frozenset[str]
    rules: frozenset[str]
    cgroups: frozenset[str]
    programs: frozenset[str]

    @classmethod
    def of_this_machine(cls) -> "Traces":
        saved = run(["iptables-save"]) + run(["ip6tables-save"])
        ours = re.compile(r"kube|containerd|etcd|coredns")
        return cls(
            interfaces=frozenset(link["ifname"] for link in json.loads(run(["ip", "-json", "link"]))),
            namespaces=frozenset(run(["ip", "netns", "list"]).split()),
            # buildah keeps one mount of its own storage, cluster or not.
            mounts=frozenset(
                line.split()[4]
                for line in Path("/proc/self/mountinfo").read_text().splitlines()
                if "/containers/storage" not in line
            ),
            rules=frozenset(line for line in saved.splitlines() if line.startswith("-A") or line.endswith("- [0:0]")),
            cgroups=frozenset(str(path) for path in Path("/sys/fs/cgroup").glob("*/readapt*")),
            programs=frozenset(
                f"{found.pid} {found.program}"
                for found in everything()
                if ours.search(found.program) and str(NODE_STATE) in " ".join(found.argv)
            ),
        )


@pytest.fixture(scope="module")
def before() -> Traces:
    packages.ensure(packages.NODE)  # iptables is one of them
    if leftovers.found():
        leftovers.clear()
    return Traces.of_this_machine()


@pytest.fixture
def up(before: Traces) -> Iterator[None]:
    node.up()
    yield
    node.down()


def kubectl(*words: str, stdin: str | None = None) -> str:
    return run([path_of("kubectl"), f"--kubeconfig={KUBECONFIG}", *words], stdin=stdin, timeout_s=90)


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "readapt_cluster", *words]


def test_pod_serves_by_name_and_down_leaves_nothing(before: Traces, up: None) -> None:
    kubectl("apply", "-f", "-", stdin=WEB)
    kubectl("wait", "--for=condition=Ready", "pod/web", "--timeout=60s")
    assert kubectl("logs", "web") == "started\n"
    fetch = ("exec", "web", "--", "wget", "-q", "-O", "-")
    assert kubectl(*fetch, "http://web.default.svc.cluster.local") == "hello\n"
    assert "10.96.0.10" in kubectl("exec", "web", "--", "nslookup", "kubernetes.default.svc.cluster.local")
    assert {row.ready for row in status.rows()} == {"yes"}
    assert KUBECONFIG.stat().st_mode & 0o777 == 0o600
    node.down()
    assert until(lambda: Traces.of_this_machine() == before, 10), (before, Traces.of_this_machine())
    assert not NODE_RUN.exists()
    assert not KUBECONFIG.exists()


def test_second_up_changes_nothing(up: None) -> None:
    pids = {(row.component, row.pid) for row in status.rows()}
    node.up()
    assert {(row.component, row.pid) for row in status.rows()} == pids


def test_another_checkout_gets_its_kubeconfig_from_up_and_may_reuse_the_node(up: None) -> None:
    KUBECONFIG.unlink()
    node.up()
    assert run([path_of("kubectl"), f"--kubeconfig={KUBECONFIG}", "get", "--raw", "/readyz"]) == "ok"
    node.check(reuse=True)
    with pytest.raises(Refused, match="make cluster-down"):
        node.check()


@pytest.mark.parametrize("reached", ["etcd", "kube-scheduler", "kubelet"])
def test_killed_up_is_cleared_by_the_next(before: Traces, reached: str) -> None:
    with subprocess.Popen(command("up"), stderr=subprocess.DEVNULL, start_new_session=True) as first:
        assert until(lambda: bool(of_state([reached], leftovers.FOLDERS)), 120)
        os.kill(first.pid, signal.SIGKILL)
    assert leftovers.found()
    node.up()
    assert {row.ready for row in status.rows()} == {"yes"}
    node.down()
    assert until(lambda: Traces.of_this_machine() == before, 10), (before, Traces.of_this_machine())


def test_interrupted_up_takes_back_what_it_started(before: Traces) -> None:
    with subprocess.Popen(command("up"), stderr=subprocess.DEVNULL, start_new_session=True) as interrupted:
        assert until(lambda: bool(of_state(["kube-apiserver"], leftovers.FOLDERS)), 120)
        os.kill(interrupted.pid, signal.SIGTERM)
        assert interrupted.wait(timeout=60) == 130
    assert until(lambda: Traces.of_this_machine() == before, 10), (before, Traces.of_this_machine())


def test_pods_of_a_killed_node_do_not_come_back(before: Traces, up: None) -> None:
    kubectl("apply", "-f", "-", stdin=WEB)
    kubectl("wait", "--for=condition=Ready", "pod/web", "--timeout=60s")
    for process in of_state([row.component for row in status.rows()], leftovers.FOLDERS):
        os.kill(process.pid, signal.SIGKILL)
    node.up()
    assert kubectl("get", "pods", "-o", "name") == ""


@pytest.mark.usefixtures("before")
def test_another_kubelet_is_refused_by_name(tmp_path: Path) -> None:
    stranger = tmp_path / "kubelet"
    stranger.symlink_to("/bin/sleep")
    with subprocess.Popen([str(stranger), "120"]) as foreign:
        done = subprocess.run(command("up"), capture_output=True, text=True, check=False, timeout=120)
        foreign.kill()
    assert done.returncode == 1
    assert f"kubelet, pid {foreign.pid}" in done.stderr
    assert not NODE_RUN.exists()
