"""Deployment of a revision and the Service of a base."""

from __future__ import annotations

from readapt_api import labels
from readapt_api.digest import hex_of
from readapt_api.serving import (
    ADMIN_PORT,
    LINGER_S,
    MAX_SHARDS,
    REQUEST_LIMIT_S,
    SERVING_PORT,
    STOP_S,
    token_subject,
)
from readapt_api.v1alpha1.base_model import BaseModelResource
from readapt_operator.builders.meta import Owner, child_meta, deployment_name, set_name
from readapt_operator.builders.pod import (
    CONTAINER_SECURITY,
    ENVIRONMENT,
    TMP_MOUNT,
    TMP_VOLUME,
    claim_volume,
    pod_template,
)
from readapt_operator.kube.resources import DEPLOYMENTS, SERVICES, Doc

_STORE = "/store"
_SET_DIR = "/etc/readapt/set"
_KEY_DIR = "/etc/readapt/api-key"
_PRE_STOP_S = 5
"""Endpoints leave the load balancers while the server still accepts."""
GRACE_S = _PRE_STOP_S + REQUEST_LIMIT_S + LINGER_S + STOP_S
"""The kubelet counts from the start of preStop; the last request may come at its end, and be one of the longest."""
_STARTUP_S = 600


def build_deployment(base: BaseModelResource, revision: str, version: str, digest: str, image: str) -> Doc:
    """The pods of one revision; its template never changes, only ``replicas`` does."""
    owner = Owner.of(base)
    name = base.metadata.name
    meta = child_meta(owner, deployment_name(name, revision), name, {labels.REVISION: revision})
    meta["annotations"] = {labels.BASE_DIGEST: digest, labels.VERSION: version}
    return {
        "apiVersion": DEPLOYMENTS.api_version,
        "kind": DEPLOYMENTS.kind,
        "metadata": meta,
        "spec": {
            "replicas": base.spec.serving.replicas,
            "revisionHistoryLimit": 0,
            "selector": {"matchLabels": pod_selector(name, revision)},
            "template": pod_template(_pod(base, revision, digest, image), base.spec.serving.pod, meta["labels"]),
        },
    }


def build_service(base: BaseModelResource, revision: str) -> Doc:
    """Port 8080 of the pods of one revision; the administration port is never part of it."""
    name = base.metadata.name
    return {
        "apiVersion": SERVICES.api_version,
        "kind": SERVICES.kind,
        "metadata": child_meta(Owner.of(base), name, name),
        "spec": {
            "selector": pod_selector(name, revision),
            "ports": [{"name": "http", "port": SERVING_PORT, "targetPort": SERVING_PORT, "protocol": "TCP"}],
        },
    }


def pod_selector(base: str, revision: str) -> dict[str, str]:
    """The labels by which Deployment and Service find the pods of a revision."""
    return {labels.BASE: base, labels.REVISION: revision}


def _pod(base: BaseModelResource, revision: str, digest: str, image: str) -> Doc:
    volumes, mounts = _volumes(base, revision)
    container = {
        "name": "server",
        "image": image,
        "command": ["readapt", "serve"],
        "args": _arguments(base, revision, digest),
        "env": ENVIRONMENT,
        "ports": [
            {"name": "http", "containerPort": SERVING_PORT},
            {"name": "admin", "containerPort": ADMIN_PORT},
        ],
        "volumeMounts": [*mounts, TMP_MOUNT],
        "readinessProbe": _probe("/readyz", period_s=1, failures=3),
        "livenessProbe": _probe("/healthz", period_s=10, failures=6),
        "startupProbe": _probe("/healthz", period_s=1, failures=_STARTUP_S),
        "lifecycle": {"preStop": {"sleep": {"seconds": _PRE_STOP_S}}},
        # The last of its log is what a server that cannot start leaves behind.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": CONTAINER_SECURITY,
    }
    return {
        "containers": [container],
        "volumes": [*volumes, TMP_VOLUME],
        "terminationGracePeriodSeconds": GRACE_S,
    }


def _arguments(base: BaseModelResource, revision: str, digest: str) -> list[str]:
    serving = base.spec.serving
    pairs = {
        "--base": f"{_STORE}/artifacts/{hex_of(digest)}",
        "--base-digest": digest,
        "--served-name": base.metadata.name,
        "--store": _STORE,
        "--set-dir": _SET_DIR,
        "--revision": revision,
        "--admin-public-key": f"{_SET_DIR}/0/admin.pub",
        "--admin-subject": token_subject(base.metadata.namespace, base.metadata.name),
        "--host": "0.0.0.0",
        "--port": str(SERVING_PORT),
        "--admin-port": str(ADMIN_PORT),
        "--dtype": serving.dtype.value.lower(),
        "--max-model-len": str(serving.max_model_len),
        "--max-batch-tokens": str(serving.max_batch_tokens),
        "--pool-memory": serving.pool_memory,
        "--max-rank": str(serving.max_rank),
        "--tensor-parallel": str(serving.tensor_parallel),
    }
    if serving.host_memory is not None:
        pairs["--host-memory"] = serving.host_memory
    if serving.first_token_seconds is not None:
        pairs["--first-token-seconds"] = str(serving.first_token_seconds)
    if serving.tenant_header is not None:
        pairs["--tenant-header"] = serving.tenant_header
    if serving.api_key_secret_ref is not None:
        pairs["--api-key-file"] = f"{_KEY_DIR}/api-key"
    return [word for pair in pairs.items() for word in pair]


def _volumes(base: BaseModelResource, revision: str) -> tuple[list[Doc], list[Doc]]:
    volumes = [claim_volume("store", base.spec.store.claim_name, read_only=True)]
    mounts: list[Doc] = [{"name": "store", "mountPath": _STORE, "readOnly": True}]
    for i in range(MAX_SHARDS):
        source = {"name": set_name(base.metadata.name, revision, i), "optional": True}
        volumes.append({"name": f"set-{i}", "configMap": source})
        mounts.append({"name": f"set-{i}", "mountPath": f"{_SET_DIR}/{i}", "readOnly": True})
    secret = base.spec.serving.api_key_secret_ref
    if secret is not None:
        items = [{"key": "api-key", "path": "api-key"}]
        volumes.append({"name": "api-key", "secret": {"secretName": secret.name, "items": items}})
        mounts.append({"name": "api-key", "mountPath": _KEY_DIR, "readOnly": True})
    return volumes, mounts


def _probe(path: str, *, period_s: int, failures: int) -> Doc:
    return {
        "httpGet": {"path": path, "port": SERVING_PORT},
        "periodSeconds": period_s,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }
