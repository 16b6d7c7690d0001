"""What a settled world looks like, without what differs from run to run: names' hashes, uids, times, sequences."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from readapt_api import labels
from readapt_testing.kube import Object
from readapt_testing.world import World

_TIMED = ("lastTransitionTime", "observedGeneration", "message")
_MEASURED = frozenset({"repairSeconds", "readySeconds", "job", "evidence"})
_RECORDS_OF_TIME = frozenset({"upgrade", "observedGeneration"})


def end_state(world: World) -> dict[str, Any]:
    """Comparable between worlds that were told the same."""
    kube, namespace = world.kube, world.namespace
    return {
        "statuses": {
            f"{kind} {o['metadata']['name']}": _status(o["status"])
            for kind in ("BaseModel", "LoRAAdapter")
            for o in kube.items(kind, namespace)
        },
        "work": sorted(_work(kind, o) for kind in ("Job", "ConfigMap") for o in _ours(world, kind)),
        "deployments": sorted(
            (o["metadata"]["labels"][labels.REVISION], o["spec"]["replicas"]) for o in _ours(world, "Deployment")
        ),
        "services": [o["spec"]["selector"] for o in _ours(world, "Service")],
        "sets": sorted(_set(o) for o in _ours(world, "ConfigMap") if "set.json" in o.get("data", {})),
    }


def created(world: World) -> dict[str, Counter[str]]:
    """Per kind: how often what was created, by role instead of name."""
    kinds = ("Job", "ConfigMap", "Deployment", "Service")
    return {kind: Counter(_roles(world, kind)) for kind in kinds}


def _roles(world: World, kind: str) -> list[str]:
    """A role per created object; an object of one name that was created twice counts twice."""
    roles = []
    for name, times in world.recorder.creations(kind).items():
        (first, *_) = world.recorder.history(kind, name)
        if first["metadata"].get("labels", {}).get(labels.MANAGED_BY) == labels.READAPT:
            roles += [_role(first)] * times
    return roles


def _role(found: Object) -> str:
    marks = found["metadata"]["labels"]
    parts = (labels.JOB_KIND, labels.ADAPTER, labels.REVISION)
    return " ".join([found["kind"], *(marks[p] for p in parts if p in marks), _input_hash(found)])


def _input_hash(found: Object) -> str:
    return str((found["metadata"].get("annotations") or {}).get(labels.INPUT_HASH, ""))


def _work(kind: str, found: Object) -> str:
    return f"{kind} {_role(found)} {(found['metadata'].get('annotations') or {}).get(labels.ATTEMPT, '')}"


def _ours(world: World, kind: str) -> list[Object]:
    return world.kube.items(kind, world.namespace, f"{labels.MANAGED_BY}={labels.READAPT}")


def _status(status: Object) -> Object:
    out = {k: v for k, v in status.items() if k not in _RECORDS_OF_TIME}
    out["conditions"] = [{k: v for k, v in c.items() if k not in _TIMED} for c in status["conditions"]]
    out["variants"] = [{k: v for k, v in one.items() if k not in _MEASURED} for one in status.get("variants", [])]
    return out


def _set(found: Object) -> str:
    shard = json.loads(found["data"]["set.json"])
    return json.dumps({k: v for k, v in shard.items() if k != "sequence"}, sort_keys=True)
