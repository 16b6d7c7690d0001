"""The operator as a process, on a real API server: it starts, makes the first Job, stops cleanly, and shares nicely."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from readapt_cluster import waiting
from readapt_cluster.control_plane import ControlPlane
from readapt_testing.fake_world import base_model, checkpoint, lora_adapter
from readapt_testing.kube import Kube, Object

pytestmark = pytest.mark.control_plane
COMMAND = "from readapt_operator.app import main; main()"


@contextmanager
def operator(plane: ControlPlane, namespace: str, log: Path, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is gone afterwards, whatever happened."""
    settings = {
        "READAPT_RUNTIME_IMAGE": "readapt-runtime:test",
        "READAPT_NAMESPACE": namespace,
        "READAPT_NAMESPACES": namespace,
        "READAPT_PROBE_PORT": "0",
        "KUBECONFIG": str(plane.kubeconfig),
        **env,
    }
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, "-c", COMMAND], env={**os.environ, **settings}, stderr=out)
        try:
            yield process
        finally:
            process.kill()
            process.wait(10)


def until(what: Callable[[], object], log: Path, seconds: float = 60.0) -> None:
    """Waits for a state of the world; fails with the operator's log."""
    assert waiting.until(lambda: bool(what()), seconds), log.read_text()[-4000:]


def jobs(kube: Kube, namespace: str) -> list[Object]:
    return kube.items("Job", namespace)


def apply(kube: Kube, namespace: str, *bodies: Object) -> None:
    for body in bodies:
        kube.create({**body, "metadata": {**body["metadata"], "namespace": namespace}}, namespace)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status)
    except OSError as error:
        return int(getattr(error, "code", 0))


def test_it_makes_the_first_jobs_answers_probes_and_stops_with_0(
    control_plane: ControlPlane, kube: Kube, namespace: str, tmp_path: Path
) -> None:
    apply(kube, namespace, base_model(), lora_adapter("a"), lora_adapter("b", checkpoint("b")))
    log, port = tmp_path / "operator.log", free_port()
    with operator(control_plane, namespace, log, READAPT_PROBE_PORT=str(port)) as process:
        until(lambda: jobs(kube, namespace), log)
        until(lambda: get(f"http://127.0.0.1:{port}/readyz") == 200, log)
        assert get(f"http://127.0.0.1:{port}/healthz") == 200
        (job,) = jobs(kube, namespace)
        assert job["spec"]["template"]["spec"]["containers"][0]["command"][:2] == ["readapt-job", "fetch"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, log.read_text()[-4000:]
    lease = kube.get("Lease", "readapt-operator", namespace)
    assert lease is not None
    assert not lease["spec"].get("holderIdentity")


def test_the_second_operator_waits_and_takes_over_when_the_first_is_killed(
    control_plane: ControlPlane, kube: Kube, namespace: str, tmp_path: Path
) -> None:
    logs = tmp_path / "one.log", tmp_path / "two.log"

    def holder() -> object:
        found = kube.get("Lease", "readapt-operator", namespace)
        return found and found["spec"]["holderIdentity"]

    lease = {"READAPT_LEASE_SECONDS": "4"}
    with operator(control_plane, namespace, logs[0], READAPT_IDENTITY="one", **lease) as first:
        until(lambda: holder() == "one", logs[0])
        with operator(control_plane, namespace, logs[1], READAPT_IDENTITY="two", **lease):
            apply(kube, namespace, base_model())
            until(lambda: jobs(kube, namespace), logs[0])
            first.kill()
            until(lambda: holder() == "two", logs[1])
            apply(kube, namespace, lora_adapter("a", {"adapter": {"uri": "pvc://a/b", "baseVersion": "v2"}}))
            until(lambda: len(jobs(kube, namespace)) == 2, logs[1])


def test_settings_that_cannot_work_end_with_64(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", COMMAND],
        env={**os.environ, "READAPT_NAMESPACE": "x", "READAPT_RUNTIME_IMAGE": ""},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 64
    assert b"READAPT_RUNTIME_IMAGE" in done.stderr


def test_everything_it_creates_is_accepted_and_nothing_is_defaulted_away(
    control_plane: ControlPlane, kube: Kube, namespace: str, tmp_path: Path
) -> None:
    """Pods of the first Job as the API server stores them, in a namespace that enforces Pod Security restricted."""
    label = {"pod-security.kubernetes.io/enforce": "restricted"}
    kube.patch("Namespace", namespace, {"metadata": {"labels": label}})
    apply(kube, namespace, base_model())
    log = tmp_path / "operator.log"
    with operator(control_plane, namespace, log):
        until(lambda: kube.items("Pod", namespace), log)
    (pod,) = kube.items("Pod", namespace)
    assert pod["spec"]["automountServiceAccountToken"] is False
    (job,) = jobs(kube, namespace)
    request = kube.get("ConfigMap", job["metadata"]["name"], namespace)
    assert request is not None
    assert json.loads(request["data"]["request.json"])["role"] == "Base"
