"""Objects of the API server, read into the nouns of ``observed``."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from datetime import datetime

from pydantic import TypeAdapter, ValidationError

from readapt_api import labels
from readapt_api.errors import EXIT_BAD_INPUT
from readapt_api.jobs import JobKind, Summary
from readapt_operator.builders.meta import controller_uid
from readapt_operator.kube.resources import Doc
from readapt_operator.memory import Memory
from readapt_operator.observed import DeploymentView, JobView, PodView, Wish

log = logging.getLogger(__name__)
_STARTING = ("ContainerCreating", "PodInitializing")
_CRASHED = "CrashLoopBackOff"
_WISHES = TypeAdapter(tuple[Wish, ...])


def job_view(body: Doc, pods: Sequence[Doc], memory: Memory) -> JobView:
    """A Job with what the last of its ``pods`` left, or waits for."""
    meta, status = body["metadata"], body.get("status") or {}
    marks = meta.get("annotations") or {}
    conditions = {x["type"]: x for x in status.get("conditions") or () if x["status"] == "True"}
    failed = conditions.get("Failed")
    ended = failed is not None or "Complete" in conditions
    summary, exit_code = _left_by(pods) if ended else (None, None)
    # The pod of a Job that runs into its deadline is gone before the Job has failed.
    waits = "; ".join(text for pod in pods for text in _waits(pod)) if pods and not ended else None
    refused_by_policy = failed is not None and failed.get("reason") == "PodFailurePolicy"
    return JobView(
        body=body,
        name=meta["name"],
        owner_uid=controller_uid(body),
        kind=JobKind(meta["labels"][labels.JOB_KIND]),
        input_hash=marks.get(labels.INPUT_HASH, ""),
        retry=marks.get(labels.RETRY, ""),
        attempt=int(marks.get(labels.ATTEMPT, "1")),
        succeeded="Complete" in conditions,
        failed=failed is not None,
        deleting="deletionTimestamp" in meta,
        summary=summary,
        exit_code=exit_code,
        failure=": ".join(x for x in (failed.get("reason"), failed.get("message")) if x) if failed else "",
        running=bool(status.get("ready")),
        waits=memory.last_text(("waits", meta["uid"]), waits),
        refused=exit_code == EXIT_BAD_INPUT or (refused_by_policy and exit_code is None),
        settled_s=memory.age_s(("ended", meta["uid"]), ended) or 0.0,
        others=_others(marks.get(labels.OTHER_ITEMS, "[]")),
    )


def _others(mark: str) -> tuple[Wish, ...]:
    """What somebody wrote there that is no list of wishes is none of ours."""
    try:
        return _WISHES.validate_json(mark)
    except ValidationError:
        return ()


def _left_by(pods: Sequence[Doc]) -> tuple[Summary | None, int | None]:
    """Termination message and exit code of a Job's last pod that ended."""
    ends = []
    for pod in pods:
        for container in (pod.get("status") or {}).get("containerStatuses") or ():
            end = (container.get("state") or {}).get("terminated")
            if end and container["name"] == "job":
                ends.append((end.get("finishedAt") or "", end.get("message") or "", int(end["exitCode"])))
    if not ends:
        return None, None
    _, message, exit_code = max(ends)
    try:
        return Summary.model_validate_json(message), exit_code
    except ValidationError:
        return None, exit_code


def _waits(pod: Doc) -> Iterator[str]:
    """What keeps a pod from starting: no node for it, an image or a Secret that cannot be had."""
    status = pod.get("status") or {}
    for x in status.get("conditions") or ():
        if x["type"] == "PodScheduled" and x["status"] == "False":
            yield x.get("message") or x.get("reason") or "it is on no node yet"
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") not in (None, _CRASHED, *_STARTING):
            yield ": ".join(x for x in (waiting["reason"], waiting.get("message")) if x)


def _end_of_server(pod: Doc) -> Doc | None:
    """How the server of a pod ended last."""
    containers = (pod.get("status") or {}).get("containerStatuses") or ()
    states = [c.get(key) or {} for c in containers if c["name"] == "server" for key in ("state", "lastState")]
    return next((s["terminated"] for s in states if "terminated" in s), None)


def _told_of(end: Doc) -> str:
    """``OOMKilled (exit code 137)``, with the last line that it left."""
    lines = (end.get("message") or "").strip().splitlines()
    return ": ".join([f"{end.get('reason') or 'it ended'} (exit code {end['exitCode']})", *lines[-1:]])


def deployment_view(body: Doc) -> DeploymentView:
    meta, status = body["metadata"], body.get("status") or {}
    marks = meta.get("annotations") or {}
    return DeploymentView(
        body=body,
        revision=meta["labels"].get(labels.REVISION, ""),
        base_digest=marks.get(labels.BASE_DIGEST, ""),
        version=marks.get(labels.VERSION, ""),
        replicas=body["spec"].get("replicas", 1),
        ready_replicas=status.get("readyReplicas", 0),
        live_replicas=status.get("replicas", 0),
        created=meta["creationTimestamp"],
        deleting="deletionTimestamp" in meta,
        retired_at=_time(marks.get(labels.RETIRED_AT, "")),
    )


def _time(stamp: str) -> datetime | None:
    """metav1.Time; None for anything else that somebody wrote there."""
    try:
        return datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%S%z")
    except ValueError:
        return None


def pod_view(body: Doc) -> PodView | None:
    """A serving pod; one that has ended is none."""
    meta, status = body["metadata"], body.get("status") or {}
    if status.get("phase") in ("Succeeded", "Failed"):
        return None
    ready = any(x["type"] == "Ready" and x["status"] == "True" for x in status.get("conditions") or ())
    end = None if ready else _end_of_server(body)
    trouble = [] if ready else [*_waits(body), *([_told_of(end)] if end else [])]
    return PodView(
        name=meta["name"],
        uid=meta["uid"],
        ip=status.get("podIP", ""),
        revision=meta["labels"][labels.REVISION],
        ready=ready,
        deleting="deletionTimestamp" in meta,
        trouble="; ".join(trouble),
        exit_code=int(end["exitCode"]) if end else None,
    )
