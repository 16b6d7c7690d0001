"""The control plane that other tests stand on: it boots, it behaves, and it leaves nothing running."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from readapt_cluster.control_plane import ControlPlane
from readapt_cluster.processes import of_state
from readapt_cluster.waiting import until

pytestmark = pytest.mark.control_plane

PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager")
JOB = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "metadata": {"name": "work"},
    "spec": {
        "template": {
            "spec": {"restartPolicy": "Never", "containers": [{"name": "work", "image": "example.invalid/work:1"}]}
        }
    },
}


@pytest.fixture(scope="module")
def cp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with ControlPlane(tmp_path_factory.mktemp("control-plane")) as running:
        yield running


def read(cp: ControlPlane, *words: str) -> dict[str, Any]:
    return dict(json.loads(cp.kubectl(*words, "-o", "json")))


def test_client_and_server_report_the_pinned_version(cp: ControlPlane) -> None:
    version = read(cp, "version")
    assert version["clientVersion"]["gitVersion"] == version["serverVersion"]["gitVersion"]
    assert (version["serverVersion"]["major"], version["serverVersion"]["minor"]) == ("1", "35")


def test_job_gets_a_pod_and_its_deletion_takes_the_pod_along(cp: ControlPlane) -> None:
    cp.kubectl("create", "-f", "-", stdin=json.dumps(JOB))
    assert until(lambda: len(read(cp, "get", "pods", "-l", "job-name=work")["items"]) == 1, 20)
    cp.kubectl("delete", "job", "work", "--cascade=foreground", "--timeout=30s")
    assert until(lambda: read(cp, "get", "pods", "-l", "job-name=work")["items"] == [], 20)


def test_namespace_ends(cp: ControlPlane) -> None:
    cp.kubectl("create", "namespace", "short-lived")
    cp.kubectl("delete", "namespace", "short-lived", "--timeout=60s")
    assert "short-lived" not in cp.kubectl("get", "namespaces", "-o", "name")


def test_two_control_planes_share_nothing(cp: ControlPlane, tmp_path: Path) -> None:
    with ControlPlane(tmp_path) as other:
        assert other.url != cp.url
        other.kubectl("create", "configmap", "only-in-the-other")
        assert "only-in-the-other" not in cp.kubectl("get", "configmaps", "-o", "name")
        assert len(of_state(PROGRAMS, [other.state_dir])) == len(PROGRAMS)
    assert of_state(PROGRAMS, [other.state_dir]) == []


def test_objects_outlive_a_restart_of_the_apiserver(cp: ControlPlane) -> None:
    cp.kubectl("create", "configmap", "kept", "--from-literal=key=value")
    cp.restart_apiserver()
    assert read(cp, "get", "configmap", "kept")["data"] == {"key": "value"}


def test_service_account_has_no_rights_of_its_own(cp: ControlPlane) -> None:
    kubeconfig = cp.kubeconfig_for("team-a", "runner")
    asked = read(cp, f"--kubeconfig={kubeconfig}", "auth", "whoami")
    assert asked["status"]["userInfo"]["username"] == "system:serviceaccount:team-a:runner"
    verdict = cp.kubectl("auth", "can-i", "--list", f"--kubeconfig={kubeconfig}", "-n", "team-a")
    assert "secrets" not in verdict


@pytest.mark.parametrize("by", ["certificate", "token"])
def test_user_is_known_by_name_and_groups(cp: ControlPlane, by: str) -> None:
    if by == "certificate":
        words = [f"--kubeconfig={cp.kubeconfig_for_user('alice', ['dev', 'ops'])}"]
    else:
        token = cp.token_for("alice", ["dev", "ops"])
        server = [f"--server={cp.url}", f"--certificate-authority={cp.ca_file}", "--kubeconfig=/dev/null"]
        words = [*server, f"--token={token}"]
    user = read(cp, *words, "auth", "whoami")["status"]["userInfo"]
    assert user["username"] == "alice"
    assert {"dev", "ops"} <= set(user["groups"])


def test_kubeconfig_is_readable_by_its_owner_only(cp: ControlPlane) -> None:
    assert cp.kubeconfig.stat().st_mode & 0o777 == 0o600


def test_killed_test_process_leaves_no_component(tmp_path: Path) -> None:
    script = (
        "import sys, time, pathlib\n"
        "from readapt_cluster.control_plane import ControlPlane\n"
        "with ControlPlane(pathlib.Path(sys.argv[1])):\n"
        "    sys.stdout.write('up\\n'); sys.stdout.flush(); time.sleep(600)\n"
    )
    argv = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"up\n"
            assert len(of_state(PROGRAMS, [tmp_path])) == len(PROGRAMS)
        finally:
            child.kill()
    assert until(lambda: of_state(PROGRAMS, [tmp_path]) == [], 15)
