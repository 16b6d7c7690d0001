"""At most one status write per object and pass, whatever happened; none when nothing changed."""

from __future__ import annotations

import logging
from typing import Any

from readapt_api import conditions as c
from readapt_api.errors import Terminal, Transient
from readapt_api.v1alpha1.base_model import BaseModelResource, BaseModelStatus
from readapt_api.v1alpha1.lora_adapter import LoRAAdapterResource, LoRAAdapterStatus
from readapt_operator.act import Outcome
from readapt_operator.decide.plan import Plan
from readapt_operator.events import events_of
from readapt_operator.kube.port import Kube
from readapt_operator.kube.resources import Doc
from readapt_operator.observed import Observed
from readapt_operator.status import Conditions, shorten

log = logging.getLogger(__name__)
_MESSAGE_CHARS = 500
Resource = BaseModelResource | LoRAAdapterResource
Status = BaseModelStatus | LoRAAdapterStatus


async def report(seen: Observed, plan: Plan, outcome: Outcome, kube: Kube) -> None:
    """Writes the statuses that differ; errors are added to ``outcome``."""
    wished: list[tuple[Resource, Status]] = [
        (a, plan.adapter_statuses[a.metadata.name]) for a in seen.adapters if a.metadata.name in plan.adapter_statuses
    ]
    if seen.base is not None and plan.base_status is not None:
        wished.insert(0, (seen.base, plan.base_status))
    for resource, status in wished:
        foreign = outcome.foreign.get((resource.kind, resource.metadata.name))
        if foreign is not None:
            status = _with_foreign(resource, status, foreign, seen.stamp)
        if status == resource.status:
            continue
        try:
            await kube.patch_status(status_patch(resource, status))
            for event in events_of(resource, status.conditions, seen.stamp):
                await kube.event(event)
        except (Transient, Terminal) as error:
            log.warning("%s: status of %s %s: %s", seen.key, resource.kind, resource.metadata.name, error)
            outcome.errors.append(error)
    for unreadable in seen.unreadable:
        try:
            await report_unreadable(unreadable.body, unreadable.why, seen.stamp, kube)
        except (Transient, Terminal) as error:
            log.warning("%s: status of LoRAAdapter %s: %s", seen.key, unreadable.name, error)
            outcome.errors.append(error)


async def report_unreadable(body: Doc, why: str, now: str, kube: Kube) -> None:
    """Stalls an object of another version of Readapt, whose other status this one may not understand either."""
    meta, told = body["metadata"], (body.get("status") or {}).get("conditions") or []
    stalled: dict[str, Any] = {
        "type": c.STALLED,
        "status": "True",
        "reason": c.UNREADABLE,
        "message": shorten(f"this version of Readapt cannot read what another one accepted: {why}", _MESSAGE_CHARS),
        "observedGeneration": meta["generation"],
        "lastTransitionTime": now,
    }
    before: dict[str, Any] = next((x for x in told if x["type"] == c.STALLED), {})
    if before.get("status") == "True":
        stalled["lastTransitionTime"] = before["lastTransitionTime"]
    if before == stalled:
        return
    others = [x for x in told if x["type"] not in (c.STALLED, c.RECONCILING)]
    identity = {key: meta[key] for key in ("name", "namespace", "uid", "resourceVersion")}
    patch = {"apiVersion": body["apiVersion"], "kind": body["kind"], "metadata": identity}
    await kube.patch_status({**patch, "status": {"conditions": [*others, stalled]}})


def status_patch(resource: Resource, status: Status) -> Doc:
    """A merge patch of the fields that differ, on exactly the object that was read."""
    before, after = resource.status.to_wire(), status.to_wire()
    changed = {k: v for k, v in _merge_patch(before, after).items() if before.get(k) != after.get(k)}
    meta = resource.metadata
    return {
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": {
            "name": meta.name,
            "namespace": meta.namespace,
            "uid": meta.uid,
            "resourceVersion": meta.resource_version,
        },
        "status": changed,
    }


def _merge_patch(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """RFC 7386: what is gone must be said to be null; lists are replaced as a whole."""
    patch: dict[str, Any] = dict.fromkeys(before.keys() - after.keys())
    for key, value in after.items():
        old = before.get(key)
        both = isinstance(value, dict) and isinstance(old, dict)
        patch[key] = _merge_patch(old or {}, value) if both else value
    return patch


def _with_foreign(resource: Resource, status: Status, why: str, now: str) -> Status:
    """A name that is taken stalls its owner; everything else of the status stands."""
    out = Conditions(resource.status.conditions, resource.metadata.generation, now)
    for condition in status.conditions:
        if condition.type not in (c.STALLED, c.RECONCILING):
            out.set(condition.type, _good(condition.status), condition.reason, condition.message)
    if not any(x.type == c.UP_TO_DATE and x.status == "False" for x in status.conditions):
        out.set(c.UP_TO_DATE, False, c.FOREIGN_OBJECT, why)
    out.stalled(c.FOREIGN_OBJECT, why)
    return status.model_copy(update={"conditions": out.done()})


def _good(status: str) -> bool | None:
    return None if status == "Unknown" else status == "True"
