"""Numbered rules that the status of every object must keep at any time, after Flux's ``FAIL0001`` lint.

R1  Ready and UpToDate are there once the object was observed
R2  Reconciling and Stalled are never both there, and where they are they are True
R3  while Stalled is there, it says why in a message
R4  observedGeneration of status and conditions is at most metadata.generation
R5  lastTransitionTime is RFC 3339 in UTC and not in the future
R6  reasons are constants of readapt_api.conditions
R7  types are constants of readapt_api.conditions, each at most once
R8  a condition that is not True has a message
R9  an object that is neither Reconciling nor Stalled has observed its present generation
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterator

from readapt_api import conditions
from readapt_testing.kube import Kube, Object

TYPES = frozenset(
    {
        conditions.READY,
        conditions.UP_TO_DATE,
        conditions.SOURCE_READY,
        conditions.ADAPTERS_READY,
        conditions.ROLLED_OUT,
        conditions.VARIANT_READY,
        conditions.RECONCILING,
        conditions.STALLED,
    }
)
REASONS = frozenset(v for k, v in vars(conditions).items() if k.isupper() and isinstance(v, str)) - TYPES


def lint_namespace(kube: Kube, namespace: str) -> list[str]:
    """Complaints about every BaseModel and LoRAAdapter of a namespace; none is good."""
    objects = [o for kind in ("BaseModel", "LoRAAdapter") for o in kube.items(kind, namespace)]
    return [complaint for found in objects for complaint in lint(found)]


def lint(found: Object) -> list[str]:
    """Complaints about one object; an object without status was never observed and has none."""
    if not found.get("status", {}).get("conditions"):
        return []
    where = f"{found['kind']} {found['metadata']['name']}"
    return [f"{where}: {complaint}" for complaint in _complaints(found)]


def _complaints(found: Object) -> Iterator[str]:
    generation = found["metadata"]["generation"]
    listed = found["status"]["conditions"]
    by_type = {c["type"]: c for c in listed}
    yield from (f"R1 {kind} is missing" for kind in (conditions.READY, conditions.UP_TO_DATE) if kind not in by_type)
    abnormal = [by_type[k] for k in (conditions.RECONCILING, conditions.STALLED) if k in by_type]
    if len(abnormal) == 2:
        yield "R2 both Reconciling and Stalled"
    yield from (f"R2 {c['type']} is {c['status']}" for c in abnormal if c["status"] != "True")
    if conditions.STALLED in by_type and not by_type[conditions.STALLED]["message"].strip():
        yield "R3 Stalled without a message"
    observed = found["status"].get("observedGeneration", 0)
    if observed > generation:
        yield f"R4 observedGeneration {observed} of generation {generation}"
    if not abnormal and observed != generation:
        yield f"R9 at rest with observedGeneration {observed} of generation {generation}"
    yield from (f"R7 {kind} appears {n} times" for kind, n in Counter(c["type"] for c in listed).items() if n > 1)
    for condition in listed:
        yield from _condition_complaints(condition, generation)


def _condition_complaints(condition: Object, generation: int) -> Iterator[str]:
    kind, reason = condition["type"], condition["reason"]
    if kind not in TYPES:
        yield f"R7 unknown type {kind}"
    if reason not in REASONS:
        yield f"R6 {kind}: unknown reason {reason}"
    if condition.get("observedGeneration", 0) > generation:
        yield f"R4 {kind}: observedGeneration {condition['observedGeneration']} of generation {generation}"
    if condition["status"] != "True" and not condition["message"].strip():
        yield f"R8 {kind} is {condition['status']} without a message"
    yield from (f"R5 {kind}: {problem}" for problem in _time_problems(condition["lastTransitionTime"]))


def _time_problems(text: str) -> Iterator[str]:
    try:
        at = datetime.datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=datetime.UTC)
    except ValueError:
        yield f"{text!r} is not RFC 3339 in UTC"
        return
    if at > datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=2):
        yield f"{text} is in the future"
