"""A pod's status as a kubelet writes it."""

from __future__ import annotations

import datetime

from readapt_testing.kube import Object
from readapt_testing.player.addresses import HOST


def now() -> str:
    """RFC 3339, UTC, whole seconds."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def waiting(reason: str, message: str = "") -> Object:
    return {"waiting": {"reason": reason, "message": message}}


def running(started_at: str) -> Object:
    return {"running": {"startedAt": started_at}}


def terminated(exit_code: int, message: str, started_at: str) -> Object:
    """``reason`` as runtimes give it: Completed for 0, Error otherwise."""
    reason = "Completed" if exit_code == 0 else "Error"
    body = {"exitCode": exit_code, "reason": reason, "startedAt": started_at, "finishedAt": now()}
    return {"terminated": body | ({"message": message} if message else {})}


def container_status(
    pod: Object, state: Object, restarts: int, ready: bool, started: bool, last: Object | None
) -> Object:
    container = pod["spec"]["containers"][0]
    return {
        "name": container["name"],
        "image": container["image"],
        "imageID": container["image"],
        "state": state,
        "lastState": last or {},
        "restartCount": restarts,
        "ready": ready,
        "started": started,
    }


def pod_status(phase: str, container: Object, address: str | None, started_at: str, since: dict[str, str]) -> Object:
    """A strategic merge patch of status; ``since`` keeps transition times by condition and value."""
    ready = "True" if container["ready"] else "False"
    done = phase == "Succeeded"
    conditions = {"PodReadyToStartContainers": "True", "Initialized": "True", "Ready": ready, "ContainersReady": ready}
    body: Object = {
        "phase": phase,
        "startTime": started_at,
        "hostIP": HOST,
        "hostIPs": [{"ip": HOST}],
        "containerStatuses": [container],
        "conditions": [_condition(kind, status, done, since) for kind, status in conditions.items()],
    }
    if address:
        body |= {"podIP": address, "podIPs": [{"ip": address}]}
    return {"status": body}


def _condition(kind: str, status: str, done: bool, since: dict[str, str]) -> Object:
    changed_at = since.setdefault(f"{kind}={status}", now())
    since.pop(f"{kind}={'False' if status == 'True' else 'True'}", None)
    body = {"type": kind, "status": status, "lastTransitionTime": changed_at}
    if status == "True":
        return body | {"reason": None, "message": None}
    return body | {"reason": "PodCompleted" if done else "ContainersNotReady", "message": None}
