"""What is sent to the API server: names, security, mounts. The real server's view of it is tested in control_plane."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any

import pytest

from readapt_api import labels
from readapt_api.jobs import AdaptItem, AdaptRequest, DriftRequest, FetchRequest, FetchRole, FetchSource
from readapt_api.serving import ADAPTERS_PER_SHARD, DesiredAdapter, DesiredSet, SetShard, join_set
from readapt_api.v1alpha1.base_model import BaseModelResource, Serving
from readapt_operator.builders.job import Task, build_job, build_request, fetch_source
from readapt_operator.builders.meta import Owner, job_name
from readapt_operator.builders.serving import build_deployment, build_service
from readapt_operator.builders.sets import build_set
from readapt_operator.observed import revision_of
from readapt_runtime.server.limits import Limits, parse_memory
from readapt_runtime.server.listener import CLOSE_GRACE_S
from readapt_runtime.server.process import ENGINE_STOP_S
from readapt_testing.fake_world import base_model

LONGEST = "a" + 38 * "b" + "c"
DIGEST = "sha256:" + 64 * "1"
OTHER = "sha256:" + 64 * "2"
OWNER = Owner("LoRAAdapter", "default", LONGEST, "uid-1")


def base(**spec: Any) -> BaseModelResource:
    body = base_model(**spec)
    body["metadata"] |= {"name": LONGEST, "uid": "uid-base"}
    return BaseModelResource.model_validate(body)


def fetch(*uris: str) -> Task:
    sources = tuple(FetchSource(uri=u, path=u.replace("pvc://", "/sources/")) for u in uris)
    request = FetchRequest(role=FetchRole.BASE, sources=sources)
    return Task(OWNER, LONGEST, request, request.input_hash)


def pods(**spec: Any) -> list[dict[str, Any]]:
    """Pod templates of a Job and of a Deployment."""
    job = build_job(fetch("pvc://models/v1"), 1, base(**spec), "image")
    deployment = build_deployment(base(**spec), "0123456789", "v1", DIGEST, "image")
    return [job["spec"]["template"], deployment["spec"]["template"]]


@pytest.mark.parametrize("template", pods(), ids=["job", "server"])
def test_pods_pass_pod_security_restricted(template: dict[str, Any]) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards, profile restricted."""
    spec = template["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] != 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    allowed = {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}
    assert all((volume.keys() - {"name"}) <= allowed for volume in spec["volumes"])
    for container in spec["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert all("hostPort" not in port for port in container.get("ports", ()))
    assert spec["automountServiceAccountToken"] is False


@pytest.mark.parametrize("template", pods(), ids=["job", "server"])
def test_every_mount_has_its_volume_and_every_volume_a_mount(template: dict[str, Any]) -> None:
    spec = template["spec"]
    mounts = spec["containers"][0]["volumeMounts"]
    assert {m["name"] for m in mounts} == {v["name"] for v in spec["volumes"]}
    assert len({v["name"] for v in spec["volumes"]}) == len(spec["volumes"])
    assert len({m["mountPath"] for m in mounts}) == len(mounts)


@pytest.mark.parametrize("kind", ["fetch", "drift", "extract", "adapt"])
def test_job_names_fit_and_depend_on_every_part_of_the_wish(kind: str) -> None:
    wishes = [
        (OWNER, DIGEST, 1, ""),
        (OWNER, OTHER, 1, ""),
        (OWNER, DIGEST, 2, ""),
        (OWNER, DIGEST, 1, "again"),
        (Owner("LoRAAdapter", "default", LONGEST, "uid-2"), DIGEST, 1, ""),
    ]
    names = {job_name(owner, kind, digest, attempt, retry) for owner, digest, attempt, retry in wishes}
    assert len(names) == len(wishes)
    assert all(len(name) <= 63 and re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) for name in names)


def test_serving_names_fit() -> None:
    deployment = build_deployment(base(), "0123456789", "v1", DIGEST, "image")
    wished = DesiredSet(sequence=1, revision="0123456789", base=DIGEST)
    names = [deployment["metadata"]["name"], build_service(base(), "0123456789")["metadata"]["name"]]
    names += [body["metadata"]["name"] for body in build_set(OWNER, wished, "key")]
    # A pod's name adds 10 characters of template hash and 5 of its own to the Deployment's.
    assert all(len(name) <= 63 for name in names)
    assert len(deployment["metadata"]["name"]) + 17 <= 253


def test_a_job_says_what_it_is_for_and_reads_its_request() -> None:
    task = fetch("pvc://models/v1")
    job, request = build_job(task, 2, base(), "image"), build_request(task, 2)
    assert job["metadata"]["name"] == request["metadata"]["name"]
    assert job["metadata"]["labels"][labels.ADAPTER] == LONGEST
    assert job["metadata"]["annotations"] == {labels.INPUT_HASH: task.input_hash, labels.ATTEMPT: "2"}
    assert job["metadata"]["ownerReferences"][0]["uid"] == "uid-1"
    assert json.loads(request["data"]["request.json"]) == task.request.to_wire()
    assert job["spec"]["backoffLimit"] == 0
    rules = job["spec"]["podFailurePolicy"]["rules"]
    assert rules[0]["onExitCodes"]["values"] == [64]
    assert rules[1]["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"


def test_a_job_of_a_base_carries_no_adapter() -> None:
    request = DriftRequest(old_base=DIGEST, new_base=OTHER)
    task = Task(Owner.of(base()), LONGEST, request, request.input_hash)
    assert labels.ADAPTER not in build_job(task, 1, base(), "image")["metadata"]["labels"]


def test_source_claims_are_mounted_read_only_and_the_stores_own_claim_once() -> None:
    task = fetch("pvc://store/a/b", "pvc://data.claim/x", "pvc://data.claim/y")
    spec = build_job(task, 1, base(), "image")["spec"]["template"]["spec"]
    mounts = {m["mountPath"]: m for m in spec["containers"][0]["volumeMounts"]}
    claims = [v["persistentVolumeClaim"]["claimName"] for v in spec["volumes"] if "persistentVolumeClaim" in v]
    assert claims == ["store", "data.claim"]
    assert mounts["/store"].get("readOnly") is None
    assert mounts["/sources/store"] == {"name": "store", "mountPath": "/sources/store", "readOnly": True}
    assert mounts["/sources/data.claim"]["readOnly"] is True


def test_a_source_is_found_under_its_claim() -> None:
    source = base().spec.versions[0].source
    assert fetch_source(source).path == "/sources/models/v1"


def test_adapting_is_named_by_its_item_not_by_its_served_name() -> None:
    def request(name: str) -> AdaptRequest:
        item = AdaptItem(name=name, reference=DIGEST, data=OTHER)
        return AdaptRequest(old_base=DIGEST, new_base=OTHER, drift=DIGEST, items=(item,))

    a, b = request("a"), request("b")
    assert a.item_hash(a.items[0]) == b.item_hash(b.items[0])


def test_users_settings_reach_the_pod_and_cannot_take_our_labels() -> None:
    pod = {
        "resources": {"requests": {"cpu": "1"}, "limits": {"memory": "2Gi"}},
        "nodeSelector": {"disk": "fast"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "labels": {"team": "x", labels.BASE: "mine"},
        "annotations": {"note": "y"},
        "imagePullSecrets": [{"name": "pull"}],
    }
    for template in pods(serving={"pod": pod}, jobs={"pod": pod}):
        spec = template["spec"]
        assert spec["containers"][0]["resources"]["limits"] == {"memory": "2Gi"}
        assert (spec["nodeSelector"], spec["imagePullSecrets"]) == ({"disk": "fast"}, [{"name": "pull"}])
        assert spec["tolerations"] == [{"key": "gpu", "operator": "Exists"}]
        assert template["metadata"]["labels"]["team"] == "x"
        assert template["metadata"]["labels"][labels.BASE] == LONGEST
        assert template["metadata"]["annotations"] == {"note": "y"}


def test_the_server_is_told_what_it_serves() -> None:
    wish = {"dtype": "Float32", "maxRank": 16, "tensorParallel": 4, "apiKeySecretRef": {"name": "keys"}}
    wish |= {"poolMemory": "8Gi", "hostMemory": "1.5Gi", "firstTokenSeconds": 6, "tenantHeader": "X-Tenant"}
    template = build_deployment(base(serving=wish), "0123456789", "v1", DIGEST, "image")["spec"]["template"]
    arguments = template["spec"]["containers"][0]["args"]
    told = dict(pair for i, pair in enumerate(pairwise(arguments)) if i % 2 == 0)
    assert told["--base"] == "/store/artifacts/" + 64 * "1"
    assert (told["--dtype"], told["--max-rank"], told["--revision"]) == ("float32", "16", "0123456789")
    assert told["--tensor-parallel"] == "4"
    assert (told["--pool-memory"], told["--host-memory"]) == ("8Gi", "1.5Gi")
    assert (told["--first-token-seconds"], told["--tenant-header"]) == ("6", "X-Tenant")
    assert told["--admin-subject"] == f"default/{LONGEST}"
    assert told["--api-key-file"] == "/etc/readapt/api-key/api-key"
    shards = [v for v in template["spec"]["volumes"] if v["name"].startswith("set-")]
    assert len(shards) == 8
    assert all(v["configMap"]["optional"] is True for v in shards)


def test_what_a_resource_leaves_out_is_what_a_server_does_unasked() -> None:
    serving, limits = Serving(), Limits()
    assert parse_memory(serving.pool_memory) == limits.pool_bytes
    assert serving.host_memory is None
    assert limits.host_bytes is None
    arguments = build_deployment(base(), "0123456789", "v1", DIGEST, "image")["spec"]["template"]["spec"]["containers"]
    assert not {"--host-memory", "--first-token-seconds", "--tenant-header"} & set(arguments[0]["args"])
    assert limits.first_token_s == limits.request_s


def test_a_pod_that_has_to_go_is_given_the_time_of_the_longest_request() -> None:
    pod = build_deployment(base(), "0123456789", "v1", DIGEST, "image")["spec"]["template"]["spec"]
    (server,) = pod["containers"]
    pre_stop, limits = server["lifecycle"]["preStop"]["sleep"]["seconds"], Limits()
    assert limits.shutdown_s >= limits.request_s + limits.linger_s
    assert pod["terminationGracePeriodSeconds"] > pre_stop + limits.shutdown_s + CLOSE_GRACE_S + ENGINE_STOP_S


def test_the_service_selects_one_revision_and_never_the_administration_port() -> None:
    spec = build_service(base(), "0123456789")["spec"]
    assert spec["selector"] == {labels.BASE: LONGEST, labels.REVISION: "0123456789"}
    assert [(p["port"], p["targetPort"]) for p in spec["ports"]] == [(8080, 8080)]


def test_a_revision_is_made_of_weights_settings_and_image_but_not_of_replicas() -> None:
    one = revision_of(base(), DIGEST, "image:1")
    assert revision_of(base(serving={"replicas": 7}), DIGEST, "image:1") == one
    others = {
        revision_of(base(), OTHER, "image:1"),
        revision_of(base(), DIGEST, "image:2"),
        revision_of(base(serving={"maxRank": 8}), DIGEST, "image:1"),
        revision_of(base(serving={"tensorParallel": 2}), DIGEST, "image:1"),
        revision_of(base(serving={"hostMemory": "1Gi"}), DIGEST, "image:1"),
        revision_of(base(serving={"firstTokenSeconds": 6}), DIGEST, "image:1"),
        revision_of(base(serving={"tenantHeader": "X-Tenant"}), DIGEST, "image:1"),
    }
    assert len(others | {one}) == 8
    assert revision_of(base(serving={"poolMemory": "4Gi"}), DIGEST, "image:1") == one, "what a server does unasked"


def test_a_large_set_is_split_and_adds_up_again() -> None:
    adapters = tuple(DesiredAdapter(name=f"a{i}", digest=DIGEST) for i in range(ADAPTERS_PER_SHARD + 1))
    wished = DesiredSet(sequence=3, revision="r", base=DIGEST, adapters=adapters)
    bodies = build_set(OWNER, wished, "PEM")
    assert [set(b["data"]) for b in bodies] == [{"set.json", "admin.pub"}, {"set.json"}]
    joined = join_set(SetShard.model_validate_json(b["data"]["set.json"]) for b in bodies)
    assert (joined.sequence, joined.digest) == (3, wished.digest)
    # A ConfigMap holds at most 1 MiB.
    assert all(len(b["data"]["set.json"]) < 1 << 20 for b in bodies)
