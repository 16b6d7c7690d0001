"""A Job and the ConfigMap with its request. Both are create-only: a changed wish has another name."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import chain

from readapt_api import labels
from readapt_api.errors import EXIT_BAD_INPUT
from readapt_api.jobs import REQUEST_FILE, SOURCES_MOUNT, STORE_MOUNT, AdaptRequest, FetchRequest, FetchSource, Request
from readapt_api.v1alpha1.base_model import BaseModelResource
from readapt_api.v1alpha1.shared import Source
from readapt_operator.builders.meta import Owner, child_meta, job_name
from readapt_operator.builders.pod import (
    CONTAINER_SECURITY,
    ENVIRONMENT,
    TMP_MOUNT,
    TMP_VOLUME,
    claim_volume,
    pod_template,
)
from readapt_operator.kube.resources import CONFIG_MAPS, JOBS, Doc

_PVC = re.compile(r"^pvc://(?P<claim>[^/]+)/(?P<path>.+)$")


@dataclass(frozen=True, slots=True)
class Task:
    """Work that is wished for: what, for whom, and under which name."""

    owner: Owner
    base: str
    request: Request
    input_hash: str
    retry: str = ""
    others: tuple[Task, ...] = ()
    """Adapt: work for other adapters over the same move, done by the same Job after this."""

    @property
    def kind(self) -> str:
        return self.request.kind.value

    @property
    def wish(self) -> tuple[str, str, str, str]:
        """As ``observed.Wish``."""
        return self.owner.uid, self.kind, self.input_hash, self.retry

    def name(self, attempt: int) -> str:
        return job_name(self.owner, self.kind, self.input_hash, attempt, self.retry)

    @property
    def whole_request(self) -> Request:
        """What the Job is told: this work and the others'."""
        if not isinstance(self.request, AdaptRequest):
            return self.request
        items = chain.from_iterable(
            t.request.items for t in (self, *self.others) if isinstance(t.request, AdaptRequest)
        )
        return self.request.model_copy(update={"items": tuple(items)})


def fetch_source(source: Source, name: str = "") -> FetchSource:
    """Where a Job finds a source: its claim is mounted under SOURCES_MOUNT."""
    claim, path = _split(source.uri)
    return FetchSource(uri=source.uri, path=f"{SOURCES_MOUNT}/{claim}/{path}", digest=source.digest, name=name)


def build_request(task: Task, attempt: int) -> Doc:
    """The ConfigMap that the Job mounts."""
    return {
        "apiVersion": CONFIG_MAPS.api_version,
        "kind": CONFIG_MAPS.kind,
        "metadata": _meta(task, attempt),
        "immutable": True,
        "data": {REQUEST_FILE.rsplit("/", 1)[-1]: json.dumps(task.whole_request.to_wire(), indent=1, sort_keys=True)},
    }


def build_job(task: Task, attempt: int, base: BaseModelResource, image: str) -> Doc:
    """One attempt. The pod is not restarted and not replaced, except after a disruption (eviction, lost node)."""
    volumes, mounts = _volumes(task, base.spec.store.claim_name)
    volumes.append({"name": "request", "configMap": {"name": task.name(attempt)}})
    mounts.append({"name": "request", "mountPath": REQUEST_FILE.rsplit("/", 1)[0], "readOnly": True})
    container = {
        "name": "job",
        "image": image,
        "command": ["readapt-job", task.kind, "--request", REQUEST_FILE],
        "env": ENVIRONMENT,
        "volumeMounts": [*mounts, TMP_MOUNT],
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "securityContext": CONTAINER_SECURITY,
    }
    spec = {"restartPolicy": "Never", "containers": [container], "volumes": [*volumes, TMP_VOLUME]}
    meta = _meta(task, attempt)
    return {
        "apiVersion": JOBS.api_version,
        "kind": JOBS.kind,
        "metadata": meta,
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": base.spec.jobs.active_deadline_seconds * (1 + len(task.others)),
            "podFailurePolicy": {"rules": _FAILURE_RULES},
            "template": pod_template(spec, base.spec.jobs.pod, meta["labels"]),
        },
    }


_FAILURE_RULES: list[Doc] = [
    {
        "action": "FailJob",
        "onExitCodes": {"containerName": "job", "operator": "In", "values": [EXIT_BAD_INPUT]},
    },
    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
]


def _meta(task: Task, attempt: int) -> Doc:
    extra = {labels.JOB_KIND: task.kind}
    if task.owner.kind == "LoRAAdapter":
        extra[labels.ADAPTER] = task.owner.name
    meta = child_meta(task.owner, task.name(attempt), task.base, extra)
    meta["annotations"] = {labels.INPUT_HASH: task.input_hash, labels.ATTEMPT: str(attempt)}
    if task.retry:
        meta["annotations"][labels.RETRY] = task.retry
    if task.others:
        meta["annotations"][labels.OTHER_ITEMS] = json.dumps([other.wish for other in task.others])
    return meta


def _volumes(task: Task, store: str) -> tuple[list[Doc], list[Doc]]:
    """Store and source claims; a source that lies in the store's claim is the same volume, mounted twice."""
    volumes = [claim_volume("store", store, read_only=False)]
    mounts: list[Doc] = [{"name": "store", "mountPath": STORE_MOUNT}]
    sources = task.request.sources if isinstance(task.request, FetchRequest) else ()
    for i, claim in enumerate(dict.fromkeys(_split(s.uri)[0] for s in sources)):
        name = "store" if claim == store else f"source-{i}"
        if name != "store":
            volumes.append(claim_volume(name, claim, read_only=True))
        mounts.append({"name": name, "mountPath": f"{SOURCES_MOUNT}/{claim}", "readOnly": True})
    return volumes, mounts


def _split(uri: str) -> tuple[str, str]:
    match = _PVC.match(uri)
    if match is None:
        raise ValueError(f"not a pvc:// URI: {uri}")
    return match["claim"], match["path"]
