"""What a decision is made of: verdicts (why something is not there yet) and actions (what to write, in order)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from readapt_api.serving import DesiredSet
from readapt_api.v1alpha1.base_model import BaseModelStatus
from readapt_api.v1alpha1.lora_adapter import LoRAAdapterStatus
from readapt_operator.kube.resources import Doc
from readapt_operator.observed import PodView


class State(Enum):
    WORKING = "Working"
    """Readapt is at it, or will be when something else is done."""
    STALLED = "Stalled"
    """A person must act."""
    HELD = "Held"
    """Wished so (suspend): neither work nor a fault."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why an object is not where its spec wants it; ``again_s`` when only time can tell."""

    state: State
    reason: str
    message: str
    again_s: float | None = None


def working(reason: str, message: str, again_s: float | None = None) -> Verdict:
    return Verdict(State.WORKING, reason, message, again_s)


def stalled(reason: str, message: str) -> Verdict:
    return Verdict(State.STALLED, reason, message)


@dataclass(frozen=True, slots=True)
class Create:
    """POST; one that is there already must be ours and for the same work."""

    body: Doc


@dataclass(frozen=True, slots=True)
class StartJob:
    """POST the request, then the Job; no Job without a request that is ours and for the same work."""

    request: Doc
    job: Doc


@dataclass(frozen=True, slots=True)
class Apply:
    """Merge into what was read (uid and resourceVersion in the body)."""

    body: Doc


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete what was read, and only that."""

    body: Doc
    why: str


@dataclass(frozen=True, slots=True)
class Push:
    """Tell pods the set that their ConfigMaps will tell them later."""

    pods: tuple[PodView, ...]
    desired: DesiredSet


@dataclass(frozen=True, slots=True)
class Drain:
    """Tell pods that nobody is sent to them any more."""

    pods: tuple[PodView, ...]


Action = Create | StartJob | Apply | Delete | Push | Drain


@dataclass(frozen=True, slots=True)
class Plan:
    """The outcome of ``decide``: writes in the order in which they are safe, then statuses."""

    actions: tuple[Action, ...] = ()
    base_status: BaseModelStatus | None = None
    adapter_statuses: Mapping[str, LoRAAdapterStatus] = field(default_factory=dict)
    """By name of the LoRAAdapter."""
    again_s: float | None = None
    """When to look again though nothing happens; None: at the resync."""
    bugs: Mapping[str, Exception] = field(default_factory=dict)
    """By name of the LoRAAdapter: what its decision tripped over. The rest of the plan stands."""


def soonest(*delays: float | None) -> float | None:
    """The smallest of the delays that are given."""
    given = [d for d in delays if d is not None]
    return min(given) if given else None


def edit_of(body: Doc, annotations: Mapping[str, str | None] | None = None, **changes: Doc) -> Doc:
    """A merge patch of exactly the object that was read."""
    meta = {key: body["metadata"][key] for key in ("name", "namespace", "uid", "resourceVersion")}
    if annotations:
        meta["annotations"] = dict(annotations)
    return {"apiVersion": body["apiVersion"], "kind": body["kind"], "metadata": meta, **changes}
