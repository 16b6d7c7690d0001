"""key -> Observed: reads everything of one base in parallel, and asks its pods."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime

from pydantic import ValidationError

from readapt_api import labels
from readapt_api.errors import LOST_ARTIFACT
from readapt_api.serving import SHARD_FILE, IncompleteSet, SetShard, join_set
from readapt_api.v1alpha1.base_model import BaseModelResource
from readapt_api.v1alpha1.lora_adapter import LoRAAdapterResource
from readapt_operator.builders.meta import controller_uid
from readapt_operator.builders.sets import ADMIN_KEY_FILE
from readapt_operator.kube.port import Kube
from readapt_operator.kube.resources import (
    BASE_MODELS,
    CONFIG_MAPS,
    DEPLOYMENTS,
    ENDPOINT_SLICES,
    JOBS,
    LORA_ADAPTERS,
    PODS,
    SERVICES,
    Doc,
)
from readapt_operator.memory import Memory
from readapt_operator.observed import (
    DeploymentView,
    JobView,
    Observed,
    PodView,
    ServiceView,
    StoredSet,
    Unreadable,
    UnreadableBase,
    by_wish,
)
from readapt_operator.pods import PodAdmin
from readapt_operator.progress import with_progress
from readapt_operator.queue import Key
from readapt_operator.settings import Settings
from readapt_operator.views import deployment_view, job_view, pod_view

log = logging.getLogger(__name__)
_SERVICE_NAME = "kubernetes.io/service-name"


@dataclass(slots=True)
class Observer:
    """Reads through the port; ``now`` and ``clock`` are injected."""

    kube: Kube
    pods: PodAdmin
    settings: Settings
    admin_key: str
    now: Callable[[], datetime]
    clock: Callable[[], float]
    memories: dict[Key, Memory] = field(default_factory=dict)

    async def observe(self, key: Key) -> Observed:
        """Raises Unavailable when the API server does not answer; pods that do not answer have no fresh state."""
        base_body, adapter_bodies = await asyncio.gather(
            self.kube.get(BASE_MODELS, key.namespace, key.base),
            self.kube.list(LORA_ADAPTERS, key.namespace),
        )
        adapters, unreadable = _adapters(key, adapter_bodies)
        seen = Observed(
            key=key,
            now=self.now(),
            runtime_image=self.settings.runtime_image,
            admin_key=self.admin_key,
            propagation_s=self.settings.propagation_s,
            drain_limit_s=self.settings.drain_limit_s,
            retry_s=self.settings.retry_s,
            base=None if base_body is None else _base(base_body),
            adapters=adapters,
            unreadable=unreadable,
        )
        if seen.base is None:
            self.memories.pop(key, None)
            return seen
        return await self._children(seen, seen.base)

    async def _children(self, seen: Observed, base: BaseModelResource) -> Observed:
        key, mine = seen.key, f"{labels.BASE}={seen.key.base}"
        # Pods after Jobs: a Job that is seen to have ended has a pod that has.
        service, jobs, deployments, sets = await asyncio.gather(
            self.kube.get(SERVICES, key.namespace, key.base),
            self.kube.list(JOBS, key.namespace, mine),
            self.kube.list(DEPLOYMENTS, key.namespace, mine),
            self.kube.list(CONFIG_MAPS, key.namespace, f"{mine},{labels.REVISION}"),
        )
        pods, slices = await asyncio.gather(
            self.kube.list(PODS, key.namespace, mine),
            self.kube.list(ENDPOINT_SLICES, key.namespace, f"{_SERVICE_NAME}={key.base}"),
        )
        memory = self.memories.setdefault(key, Memory(self.clock))
        uid = base.metadata.uid
        owners = {uid, *(a.metadata.uid for a in seen.adapters)}
        job_pods = _by_controller(p for p in pods if labels.JOB_NAME in p["metadata"].get("labels", {}))
        views = [
            job_view(j, job_pods.get(j["metadata"]["uid"], []), memory) for j in jobs if controller_uid(j) in owners
        ]
        seen = replace(
            seen,
            jobs=by_wish(await asyncio.gather(*(self._look_into(v, job_pods, memory) for v in views))),
            store_lost=any(v.summary is not None and v.summary.reason in LOST_ARTIFACT for v in views),
            service=_service(service) if service and controller_uid(service) == uid else None,
            deployments=tuple(deployment_view(d) for d in deployments if controller_uid(d) == uid),
            sets=_sets(c for c in sets if controller_uid(c) == uid),
            endpoint_pods=frozenset(_listed(slices)),
        )
        live = _owned_pods(pods, seen.deployments)
        return self._timed(replace(seen, pods=await self._ask_pods(seen, live, memory)), memory)

    async def _look_into(self, job: JobView, pods: dict[str, list[Doc]], memory: Memory) -> JobView:
        """What more than its object tells: one read for each active Job, and there are at most ``maxParallelJobs``."""
        meta = job.body["metadata"]
        if job.running:
            return await with_progress(job, pods.get(meta["uid"], []), self.kube, memory)
        if not job.active or job.deleting:
            return job
        request = await self.kube.get(CONFIG_MAPS, meta["namespace"], job.name)
        return replace(job, lacks_request=request is None or controller_uid(request) != job.owner_uid)

    async def _ask_pods(self, seen: Observed, live: list[PodView], memory: Memory) -> tuple[PodView, ...]:
        states = await self.pods.states(seen.key, [p.ip for p in live if p.ip])
        views = []
        for pod in live:
            told = states.get(pod.ip)
            # Addresses are used again: what another revision's pod says is not about this one.
            if told is not None and told.revision == pod.revision:
                memory.remember(pod.uid, told)
                views.append(replace(pod, state=told, fresh=True))
            else:
                views.append(replace(pod, state=memory.state_of(pod.uid)))
        return tuple(views)

    def _timed(self, seen: Observed, memory: Memory) -> Observed:
        """Durations, from this process's own memory."""
        served = seen.served_revision
        selected = {p.uid for p in seen.pods_of(served)}
        settled: tuple[str, ...] = ("endpoints", served or "")
        jobs = [j for attempts in seen.jobs.values() for j in attempts]
        endpoints_settled_s = memory.age_s(settled, seen.endpoint_pods <= selected)
        facts = [
            settled,
            *((fact, j.body["metadata"]["uid"]) for j in jobs for fact in ("ended", "waits", "progress")),
        ]
        memory.forget_all_but(facts, (p.uid for p in seen.pods))
        return replace(seen, endpoints_settled_s=endpoints_settled_s)


def _base(body: Doc) -> BaseModelResource:
    try:
        return BaseModelResource.model_validate(body)
    except ValidationError as error:
        raise UnreadableBase(body, _first(error)) from error


def _first(error: ValidationError) -> str:
    """``spec.gate.metric: Input should be …``."""
    found = error.errors()[0]
    return f"{'.'.join(map(str, found['loc']))}: {found['msg']}"


def _adapters(key: Key, bodies: Iterable[Doc]) -> tuple[tuple[LoRAAdapterResource, ...], tuple[Unreadable, ...]]:
    """The adapters of this base, the oldest first, and those that cannot be read."""
    mine = [b for b in bodies if b["spec"].get("baseModelRef", {}).get("name") == key.base]
    found, unreadable = [], []
    for body in mine:
        if body["metadata"].get("deletionTimestamp"):
            continue
        try:
            found.append(LoRAAdapterResource.model_validate(body))
        except ValidationError as error:
            # Only an object from before a change of the schema, or after one that was taken back, can be like that.
            meta = body["metadata"]
            log.error("%s: LoRAAdapter %s cannot be read: %s", key, meta["name"], error)
            served_name = body["spec"].get("servedName") or meta["name"]
            age = (meta["creationTimestamp"], meta["uid"])
            unreadable.append(Unreadable(meta["name"], served_name, age, body, _first(error)))
    return tuple(sorted(found, key=lambda a: (a.metadata.creation_timestamp, a.metadata.uid))), tuple(unreadable)


def _by_controller(bodies: Iterable[Doc]) -> dict[str, list[Doc]]:
    found: dict[str, list[Doc]] = {}
    for body in bodies:
        found.setdefault(controller_uid(body), []).append(body)
    return found


def _service(body: Doc) -> ServiceView:
    selector = body["spec"].get("selector") or {}
    return ServiceView(body, selector.get(labels.REVISION))


def _sets(bodies: Iterable[Doc]) -> dict[str, StoredSet]:
    by_revision: dict[str, dict[int, Doc]] = {}
    for body in bodies:
        index = body["metadata"]["name"].rpartition("-")[2]
        if index.isdigit():
            by_revision.setdefault(body["metadata"]["labels"][labels.REVISION], {})[int(index)] = body
    return {revision: _stored(revision, bodies) for revision, bodies in by_revision.items()}


def _stored(revision: str, bodies: dict[int, Doc]) -> StoredSet:
    shards = []
    for body in bodies.values():
        try:
            shards.append(SetShard.model_validate(json.loads((body.get("data") or {}).get(SHARD_FILE, ""))))
        except ValueError:
            continue  # edited by somebody: it is written again
    sequence = max((s.sequence for s in shards), default=0)
    key = (bodies[0].get("data") or {}).get(ADMIN_KEY_FILE, "") if 0 in bodies else ""
    try:
        desired = join_set(shards)
    except IncompleteSet:
        desired = None
    if desired is not None and len(bodies) > len(shards):
        desired = None
    return StoredSet(revision, sequence, desired, key, bodies)


def _owned_pods(bodies: Iterable[Doc], deployments: tuple[DeploymentView, ...]) -> list[PodView]:
    """Pods of our revisions. Their owner is a ReplicaSet, so the label decides; names make it checkable."""
    names = {d.revision: f"{d.body['metadata']['name']}-" for d in deployments}
    views = [pod_view(b) for b in bodies if labels.REVISION in b["metadata"].get("labels", {})]
    return [v for v in views if v is not None and v.name.startswith(names.get(v.revision, "\0"))]


def _listed(slices: Iterable[Doc]) -> Iterable[str]:
    for entry in slices:
        for endpoint in entry.get("endpoints") or ():
            reference = endpoint.get("targetRef") or {}
            # An endpoint without a pod is nobody's of ours: never settled while it is there.
            yield reference.get("uid") or f"unknown:{endpoint.get('addresses')}"
