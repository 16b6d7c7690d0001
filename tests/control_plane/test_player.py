"""The player of pods keeps the promises that other tests build on; real Job and Deployment controllers drive it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from readapt_testing.kube import Kube, Object
from readapt_testing.player import Player
from readapt_testing.recorder import Recorder

pytestmark = pytest.mark.control_plane

CONFIG_MAP = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "request"}}
SERVER = """
import http.server, json, os, pathlib, signal, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        path = pathlib.Path("/etc/set/greeting")
        ok = self.path != "/ready" or path.exists()
        body = path.read_bytes() if path.exists() else b"nothing"
        self.send_response(200 if ok else 503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args): pass
def leave(*_):
    pathlib.Path("/store/left").write_text("politely")
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
http.server.HTTPServer(("0.0.0.0", 8080), Handler).serve_forever()
"""


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir()
    return folder


@pytest.fixture
def player(kube: Kube, namespace: str, tmp_path: Path, store: Path) -> Iterator[Player]:
    with Player(kube, namespace, tmp_path / "pods", {"store": store}) as running:
        yield running


def job(name: str, script: str, **spec: object) -> Object:
    container = {
        "name": "job",
        "image": "played",
        "command": ["sh", "-c", script],
        "env": [{"name": "GREETING", "value": "hello world"}],
        "volumeMounts": [
            {"name": "store", "mountPath": "/store"},
            {"name": "request", "mountPath": "/etc/readapt"},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
        "securityContext": {"readOnlyRootFilesystem": True},
    }
    pod = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "containers": [container],
        "volumes": [
            {"name": "store", "persistentVolumeClaim": {"claimName": "store"}},
            {"name": "request", "configMap": {"name": "request", "optional": True}},
            {"name": "tmp", "emptyDir": {}},
        ],
    }
    template = {"metadata": {"labels": {"app": name}}, "spec": pod}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {"backoffLimit": 0, "template": template, **spec},
    }


def finished(found: Object | None) -> bool:
    conditions = (found or {}).get("status", {}).get("conditions", [])
    return any(c["type"] in ("Complete", "Failed") and c["status"] == "True" for c in conditions)


def run_to_end(kube: Kube, namespace: str, document: Object) -> tuple[str, Object]:
    """The Job's last condition and the terminated state of its pod's container."""
    name = document["metadata"]["name"]
    kube.create(document, namespace)
    done = kube.wait("Job", name, namespace, finished, 60, "finished")
    assert done is not None
    condition = next(c for c in done["status"]["conditions"] if c["type"] in ("Complete", "Failed"))
    (pod,) = kube.items("Pod", namespace, f"batch.kubernetes.io/job-name={name}")
    return condition["type"], pod["status"]["containerStatuses"][0]["state"]["terminated"]


def test_job_runs_its_command_over_its_mounts_and_leaves_a_message(
    kube: Kube, namespace: str, player: Player, store: Path
) -> None:
    kube.create(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "request"}, "data": {"a": "b"}}, namespace
    )
    script = 'cat /etc/readapt/a > /store/copied; touch /tmp/x; printf "$GREETING" > /dev/termination-log'

    verdict, state = run_to_end(kube, namespace, job("good", script))

    assert (verdict, state["exitCode"], state["message"]) == ("Complete", 0, "hello world")
    assert (store / "copied").read_text() == "b"


def test_root_is_read_only_and_configmaps_too(kube: Kube, namespace: str, player: Player) -> None:
    script = "for f in /x /usr/x /etc/readapt/x /etc/x; do if touch $f; then exit 3; fi; done; exit 0"

    assert run_to_end(kube, namespace, job("rofs", script))[0] == "Complete"


def test_pod_failure_policy_sees_the_real_exit_code(kube: Kube, namespace: str, player: Player) -> None:
    rule = {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [64]}}
    document = job("bad", "exit 64", backoffLimit=6, podFailurePolicy={"rules": [rule]})

    verdict, state = run_to_end(kube, namespace, document)

    done = kube.get("Job", "bad", namespace)
    assert done is not None
    assert (verdict, state["exitCode"]) == ("Failed", 64)
    assert done["status"]["conditions"][-1]["reason"] == "PodFailurePolicy"


def test_killed_process_reports_137(kube: Kube, namespace: str, player: Player) -> None:
    verdict, state = run_to_end(kube, namespace, job("killed", "sh -c 'kill -9 $$'; exit $?"))

    assert (verdict, state["exitCode"]) == ("Failed", 137)


def test_deleted_job_ends_its_process(kube: Kube, namespace: str, player: Player, store: Path) -> None:
    kube.create(
        job("long", "trap 'touch /store/term; exit 0' TERM; touch /store/began; while :; do sleep 0.1; done"), namespace
    )
    kube.wait("Job", "long", namespace, lambda j: (j or {}).get("status", {}).get("ready") == 1, 30, "running")
    (pod,) = player.pods()

    kube.delete("Job", "long", namespace, {"propagationPolicy": "Foreground"})
    kube.wait("Job", "long", namespace, lambda j: j is None, 30, "gone")
    pod.join()

    assert (store / "term").exists()


def deployment(kube: Kube, namespace: str) -> None:
    container = {
        "name": "server",
        "image": "played",
        "command": ["python"],
        "args": ["-c", SERVER],
        "ports": [{"name": "http", "containerPort": 8080}],
        "volumeMounts": [{"name": "set", "mountPath": "/etc/set"}, {"name": "store", "mountPath": "/store"}],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}, "periodSeconds": 1},
        "startupProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1, "failureThreshold": 30},
        "lifecycle": {"preStop": {"sleep": {"seconds": 1}}},
    }
    pod = {
        "automountServiceAccountToken": False,
        "containers": [container],
        "volumes": [
            {"name": "set", "configMap": {"name": "set", "optional": True}},
            {"name": "store", "persistentVolumeClaim": {"claimName": "store"}},
        ],
    }
    labels = {"app": "server"}
    template = {"metadata": {"labels": labels}, "spec": pod}
    spec = {"replicas": 2, "selector": {"matchLabels": labels}, "template": template}
    kube.create(
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "server"}, "spec": spec}, namespace
    )
    ports = [{"port": 8080, "targetPort": 8080}]
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "server"}}
    kube.create({**service, "spec": {"selector": labels, "ports": ports}}, namespace)


def test_deployment_becomes_ready_when_its_optional_configmap_appears(
    kube: Kube, namespace: str, player: Player, store: Path
) -> None:
    with Recorder(kube, namespace, ("Pod",)) as pods:
        deployment(kube, namespace)
        pods.wait(lambda r: sum(_started(p) for p in r.live("Pod").values()) == 2, 60, "running")
    assert (kube.get("Deployment", "server", namespace) or {})["status"].get("readyReplicas", 0) == 0

    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "set"}}
    kube.create({**config, "data": {"greeting": "one"}}, namespace)
    kube.wait("Deployment", "server", namespace, lambda d: (d or {})["status"].get("readyReplicas") == 2, 60, "ready")
    addresses = {p["status"]["podIP"] for p in kube.items("Pod", namespace)}
    assert len(addresses) == 2
    assert {httpx.get(f"http://{a}:8080/x", trust_env=False).text for a in addresses} == {"one"}

    kube.patch("ConfigMap", "set", {"data": {"greeting": "two"}}, namespace)
    with Recorder(kube, namespace, ("Pod",)) as pods:
        kube.patch("Deployment", "server", {"spec": {"replicas": 0}}, namespace)
        pods.wait(lambda r: not r.live("Pod"), 30, "gone")
    assert (store / "left").read_text() == "politely"


def test_configmap_change_reaches_a_running_pod(kube: Kube, namespace: str, player: Player, store: Path) -> None:
    kube.create({**CONFIG_MAP, "data": {"a": "1", "b": "x"}}, namespace)
    script = "until [ $(cat /etc/readapt/a) = 2 ]; do sleep 0.1; done; ls /etc/readapt > /store/seen"
    kube.create(job("reader", script), namespace)
    kube.wait("Job", "reader", namespace, lambda j: (j or {}).get("status", {}).get("ready") == 1, 30, "running")

    kube.replace({**CONFIG_MAP, "data": {"a": "2", "c": "y"}}, namespace)
    kube.wait("Job", "reader", namespace, finished, 30, "finished")

    assert (store / "seen").read_text().split() == ["a", "c"]


def test_missing_claim_keeps_the_pod_pending_with_its_name(kube: Kube, namespace: str, player: Player) -> None:
    document = json.loads(json.dumps(job("unbound", "true")).replace('"claimName": "store"', '"claimName": "nowhere"'))
    with Recorder(kube, namespace, ("Pod",)) as pods:
        kube.create(document, namespace)
        pods.wait(lambda r: any("nowhere" in json.dumps(p["status"]) for p in r.live("Pod").values()), 30, "pending")


def _started(pod: Object) -> bool:
    return any(c["started"] for c in pod.get("status", {}).get("containerStatuses", []))
