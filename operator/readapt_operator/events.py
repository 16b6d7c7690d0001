"""Events: one CamelCase reason per kind of fact, on the object that people would describe; never the only record."""

from __future__ import annotations

from collections.abc import Iterator

from readapt_api import conditions as c
from readapt_api.conditions import Condition
from readapt_api.digest import digest_of, hex_of
from readapt_api.v1alpha1.base_model import BaseModelResource
from readapt_api.v1alpha1.lora_adapter import LoRAAdapterResource
from readapt_operator.kube.resources import EVENTS, Doc
from readapt_operator.status import find, shorten

_COMPONENT = "readapt-operator"
_MESSAGE_CHARS = 1000
_GOOD_NEWS = (c.READY, c.UP_TO_DATE)


def events_of(
    resource: BaseModelResource | LoRAAdapterResource, after: tuple[Condition, ...], now: str
) -> Iterator[Doc]:
    """What changed from the stored conditions to ``after``. The same fact has the same name, so it is told once."""
    before = resource.status.conditions
    stalled, was = find(after, c.STALLED), find(before, c.STALLED)
    if stalled is not None and (was is None or (was.reason, was.message) != (stalled.reason, stalled.message)):
        yield _event(resource, "Warning", stalled, now)
    for kind in _GOOD_NEWS:
        new, old = find(after, kind), find(before, kind)
        if new is not None and new.status == "True" and (old is None or old.status != "True"):
            yield _event(resource, "Normal", new, now)


def _event(resource: BaseModelResource | LoRAAdapterResource, kind: str, about: Condition, now: str) -> Doc:
    meta = resource.metadata
    fact = {"uid": meta.uid, "since": about.last_transition_time, "reason": about.reason, "text": about.message}
    return {
        "apiVersion": EVENTS.api_version,
        "kind": EVENTS.kind,
        "metadata": {
            "name": f"{meta.name}.{hex_of(digest_of(fact))[:16]}",
            "namespace": meta.namespace,
        },
        "involvedObject": {
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "namespace": meta.namespace,
            "name": meta.name,
            "uid": meta.uid,
        },
        "type": kind,
        "reason": about.reason,
        "message": shorten(about.message, _MESSAGE_CHARS),
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
        "source": {"component": _COMPONENT},
        "reportingComponent": _COMPONENT,
        "reportingInstance": _COMPONENT,
    }
