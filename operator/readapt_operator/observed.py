"""What one pass sees: ``observe`` fills these, ``decide`` reads them, nobody changes them.

Only children whose controller is the live owner (by uid) are in here; others are foreign and met at creation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from readapt_api.digest import digest_of
from readapt_api.errors import Terminal
from readapt_api.jobs import JobKind, Summary
from readapt_api.serving import AdapterState, DesiredSet, PodState
from readapt_api.v1alpha1.base_model import BaseModelResource
from readapt_api.v1alpha1.lora_adapter import LoRAAdapterResource
from readapt_operator.kube.resources import Doc
from readapt_operator.queue import Key

Wish = tuple[str, str, str, str]
"""uid of the owner, kind, input hash, the user's retry: what the attempts at one piece of work have in common."""

Member = tuple[str, str]
"""(served name, digest of the variant)."""


@dataclass(frozen=True, slots=True)
class JobView:
    """A Job and what its pod left."""

    body: Doc
    name: str
    owner_uid: str
    kind: JobKind
    input_hash: str
    retry: str
    attempt: int
    succeeded: bool
    failed: bool
    deleting: bool
    summary: Summary | None = None
    exit_code: int | None = None
    failure: str = ""
    """Why the Job controller gave up."""
    running: bool = False
    """Its pod has started."""
    lacks_request: bool = False
    """It has not started, and the ConfigMap that it is to read is not there or is not its owner's."""
    waits: str = ""
    """Why its pod does not start, or what it waited for when it was last seen."""
    progress: str = ""
    """``43%``, when it was last told."""
    refused: bool = False
    """It ended with exit code 64, or its pod failure policy says so."""
    settled_s: float = 0.0
    """How long this process has known that it ended."""
    others: tuple[Wish, ...] = ()
    """Work for other owners that it does after its own."""

    @property
    def active(self) -> bool:
        return not (self.succeeded or self.failed)

    @property
    def wish(self) -> Wish:
        return self.owner_uid, self.kind.value, self.input_hash, self.retry


def by_wish(jobs: Iterable[JobView]) -> dict[Wish, tuple[JobView, ...]]:
    """The attempts at each piece of work, in order; a Job that does others' work as well is among theirs, too."""
    found: dict[Wish, tuple[JobView, ...]] = {}
    for job in sorted(jobs, key=lambda j: j.attempt):
        for wish in (job.wish, *job.others):
            found[wish] = (*found.get(wish, ()), job)
    return found


@dataclass(frozen=True, slots=True)
class PodView:
    """A serving pod; ``state`` is what its administration port said."""

    name: str
    uid: str
    ip: str
    revision: str
    ready: bool
    deleting: bool
    trouble: str = ""
    """Why it is not ready: what it waits for, or how its server ended; empty when it is on its way."""
    exit_code: int | None = None
    """Of a server that ended and has not been ready since."""
    state: PodState | None = None
    fresh: bool = False
    """``state`` was read in this pass, not remembered."""

    @property
    def serving(self) -> bool:
        """Ready and staying."""
        return self.ready and not self.deleting

    @property
    def verified(self) -> frozenset[Member]:
        """The variants that are verified on this pod, as far as it said."""
        told = self.state.adapters if self.state else ()
        return frozenset((a.name, a.digest) for a in told if a.state is AdapterState.VERIFIED)


@dataclass(frozen=True, slots=True)
class DeploymentView:
    """One revision's Deployment."""

    body: Doc
    revision: str
    base_digest: str
    version: str
    replicas: int
    """As wished in its spec."""
    ready_replicas: int
    live_replicas: int
    """Pods that there are, ready or not."""
    created: str
    deleting: bool
    retired_at: datetime | None = None
    """Since when its pods are told to drain, whatever they answer."""


@dataclass(frozen=True, slots=True)
class StoredSet:
    """The set ConfigMaps of a revision; ``desired`` is None while they do not add up."""

    revision: str
    sequence: int
    desired: DesiredSet | None
    admin_key: str
    shards: Mapping[int, Doc] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ServiceView:
    body: Doc
    revision: str | None
    """Of the pods that it selects."""


def stamp_of(moment: datetime) -> str:
    """metav1.Time."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


class UnreadableBase(Terminal):
    """A BaseModel that does not fit this operator's schema: nothing is decided about it, so what runs stays."""

    def __init__(self, body: Doc, why: str) -> None:
        super().__init__(f"BaseModel {body['metadata']['name']} cannot be read: {why}")
        self.body = body
        self.why = why


@dataclass(frozen=True, slots=True)
class Unreadable:
    """What is known of an adapter that does not fit this operator's schema."""

    name: str
    served_name: str
    age: tuple[str, str]
    """Creation time and uid: what the claims of a served name are ordered by."""
    body: Doc
    why: str


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything that the decision about one base and its adapters needs."""

    key: Key
    now: datetime
    runtime_image: str
    admin_key: str
    """PEM of the public key that serving pods trust."""
    propagation_s: float
    drain_limit_s: float
    retry_s: float
    base: BaseModelResource | None
    adapters: tuple[LoRAAdapterResource, ...] = ()
    """Oldest first."""
    unreadable: tuple[Unreadable, ...] = ()
    """Adapters of this base that are for another version of Readapt: what they serve stays as it is."""
    jobs: Mapping[Wish, tuple[JobView, ...]] = field(default_factory=dict)
    """All Jobs of the base and its adapters, by what they are for; earlier attempts first."""
    store_lost: bool = False
    """A Job told that something is not in the store any more."""
    service: ServiceView | None = None
    deployments: tuple[DeploymentView, ...] = ()
    sets: Mapping[str, StoredSet] = field(default_factory=dict)
    pods: tuple[PodView, ...] = ()
    endpoint_pods: frozenset[str] = frozenset()
    """uids of the pods that the Service's EndpointSlices list, ready or not."""
    endpoints_settled_s: float | None = None
    """How long they have listed no pod but those of the selected revision; None while they list another."""

    @property
    def stamp(self) -> str:
        """Now, as metav1.Time."""
        return stamp_of(self.now)

    def deployment(self, revision: str | None) -> DeploymentView | None:
        return next((d for d in self.deployments if d.revision == revision), None)

    def pods_of(self, revision: str | None) -> tuple[PodView, ...]:
        return tuple(p for p in self.pods if p.revision == revision)

    def fetches_again(self, retry: str) -> bool:
        """Records of what is in the store are not believed until a fetch under the user's ``retry`` has ended well."""
        return bool(retry) and self.store_lost

    def held(self, revision: str) -> frozenset[Member]:
        """What a revision's stored set and its pods have: either of them may be lost."""
        stored = self.sets.get(revision)
        listed = stored.desired.adapters if stored is not None and stored.desired is not None else ()
        told = [a for p in self.pods_of(revision) if p.state is not None for a in p.state.adapters]
        return frozenset([*((a.name, a.digest) for a in listed), *((a.name, a.digest) for a in told)])

    @property
    def served_revision(self) -> str | None:
        """What the Service selects; when the Service is gone, what it selected last, if that is still there."""
        if self.service is not None:
            return self.service.revision
        recorded = self.base.status.revision if self.base else None
        found = self.deployment(recorded)
        return recorded if found is not None and found.replicas > 0 else None


def revision_of(base: BaseModelResource, digest: str, image: str) -> str:
    """Ten hexadecimal digits: base digest, serving settings that pods depend on, runtime image."""
    serving = {k: v for k, v in base.spec.serving.to_wire().items() if k != "replicas"}
    inputs = {"base": digest, "serving": serving, "store": base.spec.store.to_wire(), "image": image}
    return digest_of(inputs).removeprefix("sha256:")[:10]
