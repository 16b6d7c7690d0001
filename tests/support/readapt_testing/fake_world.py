"""The cluster around the operator in virtual time: Jobs that end, pods that start, endpoints that follow.

The world decides by itself what Jobs come to (``succeed`` computes digests from the requests, as the runtime would from
content), so that tests can say in advance which digests must be served.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from readapt_api import labels
from readapt_api.artifacts import Origin
from readapt_api.digest import digest_of
from readapt_api.jobs import (
    AdaptRequest,
    DriftOutcome,
    DriftRequest,
    ExtractRequest,
    FetchOutcome,
    FetchRequest,
    FetchRole,
    GateVerdict,
    Interval,
    JobKind,
    LearnRequest,
    Outcome,
    RungResult,
    Summary,
    TrainRequest,
)
from readapt_api.serving import (
    SHARD_FILE,
    AdapterState,
    DesiredSet,
    IncompleteSet,
    PodAdapter,
    PodState,
    SetShard,
    join_set,
)
from readapt_operator.kube.resources import Doc
from readapt_operator.loop import Loop
from readapt_operator.observe import Observer
from readapt_operator.queue import Key, WorkQueue
from readapt_operator.settings import Settings
from readapt_testing.fake_kube import FakeKube

START = datetime(2025, 1, 1, tzinfo=UTC)
ADMIN_KEY = "-----BEGIN PUBLIC KEY-----\nworld\n-----END PUBLIC KEY-----\n"
NAMESPACE = "default"


def content(uri: str) -> str:
    """Digest of what lies at a uri."""
    return digest_of({"content": uri})


def native_variant(uri: str, base: str) -> str:
    return digest_of({"variant": content(uri), "base": base})


def adapted_variant(reference: str, base: str) -> str:
    return digest_of({"variant": reference, "base": base})


@dataclass
class FakePods:
    """Administration of the pods that the world runs."""

    states: dict[str, PodState] = field(default_factory=dict)
    """By pod address."""
    unreachable: set[str] = field(default_factory=set)
    drained: list[str] = field(default_factory=list)

    async def push(self, base: Key, ips: Iterable[str], desired: DesiredSet) -> None:
        for ip in ips:
            if ip in self.states and desired.sequence > self.states[ip].sequence:
                self.states[ip] = holding(self.states[ip], desired, AdapterState.REGISTERED)

    async def drain(self, base: Key, ips: Iterable[str]) -> None:
        for ip in ips:
            if ip in self.states:
                self.drained.append(ip)
                self.states[ip] = self.states[ip].model_copy(update={"draining": True})


def holding(state: PodState, desired: DesiredSet, new: AdapterState) -> PodState:
    """The state of a pod that was told a set; what it had verified stays so."""
    known = {(a.name, a.digest): a for a in state.adapters}
    adapters = tuple(
        known.get((a.name, a.digest), PodAdapter(name=a.name, digest=a.digest, state=new)) for a in desired.adapters
    )
    update = {"sequence": desired.sequence, "set_digest": desired.digest, "adapters": adapters}
    return state.model_copy(update=update)


class _Admin:
    """The protocol's method ``states`` beside the attribute of the same name."""

    def __init__(self, pods: FakePods) -> None:
        self._pods = pods
        self.push, self.drain = pods.push, pods.drain

    async def states(self, base: Key, ips: Iterable[str]) -> dict[str, PodState]:
        known = self._pods.states
        return {ip: known[ip] for ip in ips if ip in known and ip not in self._pods.unreachable}


Work = Callable[[Any], Summary | int]
"""Request -> what the Job's pod leaves; an exit code when it dies without a word."""


class World:
    """One base and its adapters. ``step`` is one second: the operator looks once, then the cluster moves."""

    def __init__(self, work: Work | None = None) -> None:
        self.time = 0.0
        self.kube = FakeKube(self.stamp)
        self.pods = FakePods()
        self.work: Work = work or succeed
        self.image = "runtime:1"
        self.key = Key(NAMESPACE, "base")
        self.requests: list[Any] = []
        self._pod_count = 0
        self._runner = asyncio.Runner()
        self.restart()

    def stamp(self) -> str:
        return self.now().strftime("%Y-%m-%dT%H:%M:%SZ")

    def now(self) -> datetime:
        return START + timedelta(seconds=self.time)

    def restart(self) -> None:
        """A new operator process: all that the old one only remembered is gone."""
        settings = Settings(runtime_image=self.image, namespace="readapt-system")
        admin = _Admin(self.pods)
        observer = Observer(self.kube, admin, settings, ADMIN_KEY, self.now, lambda: self.time)
        queue = WorkQueue(lambda: self.time)
        self.loop = Loop(self.kube, admin, observer, queue, settings, lambda: self.time, lambda: True)

    def reconcile(self) -> float | None:
        return self._runner.run(self.loop.reconcile(self.key))

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.close()

    def step(self) -> None:
        self.reconcile()
        self.move()

    def move(self) -> None:
        """The cluster without the operator, for a second."""
        self.time += 1.0
        self._endpoints()
        self._jobs()
        self._deployments()
        self._probe()

    def settle(self, limit: int = 200, quiet: int = 15) -> None:
        """Until nothing was written for ``quiet`` seconds."""
        still = 0
        for _ in range(limit):
            before = len(self.kube.writes)
            self.step()
            still = still + 1 if len(self.kube.writes) == before and not self._busy() else 0
            if still >= quiet:
                return
        raise AssertionError(f"not settled after {limit} s; last writes: {self.kube.writes[-6:]}")

    def _busy(self) -> bool:
        return any(not (j.get("status") or {}).get("conditions") for j in self.kube.of("Job").values())

    def _jobs(self) -> None:
        for name, job in self.kube.of("Job").items():
            if (job.get("status") or {}).get("conditions"):
                continue
            request = self._request(name, job)
            if request is not None:
                self.requests.append(request)
                left = self.work(request)
                code = 0 if isinstance(left, Summary) and left.ok else left if isinstance(left, int) else 64
                self._end(name, job, code, left.model_dump_json(by_alias=True) if isinstance(left, Summary) else "")

    def _request(self, name: str, job: Doc) -> Any:
        found = self.kube.of("ConfigMap").get(name)
        if found is None:
            return None
        kinds: dict[str, Any] = {
            "fetch": FetchRequest,
            "drift": DriftRequest,
            "extract": ExtractRequest,
            "train": TrainRequest,
            "learn": LearnRequest,
            "adapt": AdaptRequest,
        }
        kind = job["metadata"]["labels"][labels.JOB_KIND]
        return kinds[kind].model_validate(json.loads(found["data"]["request.json"]))

    def _end(self, name: str, job: Doc, code: int, message: str) -> None:
        terminated = {"exitCode": code, "message": message, "finishedAt": self.stamp()}
        owner = {"kind": "Job", "name": name, "uid": job["metadata"]["uid"], "controller": True}
        meta: Doc = {"name": f"{name}-pod", "namespace": NAMESPACE, "ownerReferences": [owner]}
        meta["labels"] = {**job["metadata"]["labels"], labels.JOB_NAME: name}
        statuses = [{"name": "job", "state": {"terminated": terminated}}]
        phase = "Succeeded" if code == 0 else "Failed"
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {}}
        self.kube.put({**pod, "status": {"phase": phase, "containerStatuses": statuses}})
        ended = {"type": "Complete" if code == 0 else "Failed", "status": "True", "reason": "Ended"}
        self.kube.change("Job", name, status={"conditions": [ended]})

    def _deployments(self) -> None:
        for name, deployment in self.kube.of("Deployment").items():
            revision = deployment["metadata"]["labels"][labels.REVISION]
            mine = {n: p for n, p in self.kube.of("Pod").items() if n.startswith(f"{name}-")}
            wished = deployment["spec"]["replicas"]
            for surplus in list(mine)[wished:]:
                self.pods.states.pop(mine.pop(surplus)["status"]["podIP"], None)
                self.kube.remove("Pod", surplus)
            for pod in mine.values():
                self._start(pod)
            for _ in range(wished - len(mine)):
                self._add_pod(name, revision, deployment)
            ready = sum(p["status"]["conditions"][0]["status"] == "True" for p in mine.values())
            status = {"replicas": wished, "readyReplicas": ready}
            if deployment.get("status") != status:
                self.kube.change("Deployment", name, status=status)

    def _add_pod(self, deployment: str, revision: str, body: Doc) -> None:
        self._pod_count += 1
        meta: Doc = {"name": f"{deployment}-{self._pod_count}", "namespace": NAMESPACE}
        meta["labels"] = dict(body["spec"]["template"]["metadata"]["labels"])
        conditions = [{"type": "Ready", "status": "False"}]
        status = {"phase": "Running", "podIP": f"10.0.0.{self._pod_count}", "conditions": conditions}
        self.kube.put({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {}, "status": status})

    def _start(self, pod: Doc) -> None:
        """A pod reads its set and gets ready a second after it was made."""
        ip, revision = pod["status"]["podIP"], pod["metadata"]["labels"][labels.REVISION]
        if ip in self.pods.states:
            return
        desired = self._stored_set(revision)
        if desired is None:
            return
        empty = PodState(
            revision=revision,
            base=desired.base,
            sequence=-1,
            set_digest=None,
            ready=True,
            draining=False,
            in_flight=0,
            connections=0,
        )
        self.pods.states[ip] = holding(empty, desired, AdapterState.REGISTERED)
        pod["status"]["conditions"] = [{"type": "Ready", "status": "True"}]

    def _stored_set(self, revision: str) -> DesiredSet | None:
        shards = [
            SetShard.model_validate_json(c["data"][SHARD_FILE])
            for c in self.kube.of("ConfigMap").values()
            if c["metadata"].get("labels", {}).get(labels.REVISION) == revision
        ]
        try:
            return join_set(shards)
        except IncompleteSet:
            return None

    def _probe(self) -> None:
        """Every variant that a pod registered is verified a second later."""
        for ip, state in self.pods.states.items():
            adapters = tuple(
                a.model_copy(update={"state": AdapterState.VERIFIED}) if a.state is AdapterState.REGISTERED else a
                for a in state.adapters
            )
            self.pods.states[ip] = state.model_copy(update={"adapters": adapters})

    def _endpoints(self) -> None:
        for name, service in self.kube.of("Service").items():
            selector = service["spec"]["selector"]
            listed = [
                {"targetRef": {"uid": p["metadata"]["uid"]}, "addresses": [p["status"]["podIP"]]}
                for p in self.kube.of("Pod").values()
                if selector.items() <= p["metadata"]["labels"].items()
                and p["status"].get("conditions", [{}])[0].get("status") == "True"
            ]
            body = {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "endpoints": listed}
            if f"{name}-slice" in self.kube.of("EndpointSlice"):
                self.kube.objects[("EndpointSlice", NAMESPACE, f"{name}-slice")]["endpoints"] = listed
                continue
            meta: Doc = {"name": f"{name}-slice", "namespace": NAMESPACE}
            meta["labels"] = {"kubernetes.io/service-name": name}
            meta["ownerReferences"] = [{"kind": "Service", "name": name, "uid": service["metadata"]["uid"]}]
            self.kube.put({**body, "metadata": meta})


def succeed(request: Any) -> Summary:
    """What a healthy runtime makes of each request."""
    kind = JobKind(request.kind)
    if isinstance(request, FetchRequest):
        return Summary(kind=kind, ok=True, fetch=_fetched(request))
    if isinstance(request, DriftRequest):
        digest = digest_of({"drift": [request.old_base, request.new_base]})
        found = DriftOutcome(
            input_hash=request.input_hash,
            digest=digest,
            relative_norm=0.0123,
            captured_energy=0.9,
            report="results/drift.report.html",
        )
        return Summary(kind=kind, ok=True, drift=found)
    if isinstance(request, TrainRequest | LearnRequest):
        return Summary(kind=kind, ok=True, outcomes=(made(request),))
    requests = [request]
    if isinstance(request, AdaptRequest):
        requests = [request.model_copy(update={"items": (item,)}) for item in request.items]
    return Summary(kind=kind, ok=True, outcomes=tuple(map(passed, requests)))


def _fetched(request: FetchRequest) -> FetchOutcome:
    uris = [s.uri for s in request.sources]
    digest = content(uris[0]) if len(uris) == 1 else digest_of({"contents": uris})
    variant = native_variant(uris[0], request.base or "") if request.role is FetchRole.ADAPTER else None
    rank = 8 if variant else None
    return FetchOutcome(input_hash=request.input_hash, digest=digest, size_bytes=1, variant=variant, rank=rank)


def trained_variant(*data: str, base: str) -> str:
    """Of what was trained, or learned task after task, from these examples."""
    return digest_of({"learned": list(data), "base": base})


def made(request: TrainRequest | LearnRequest) -> Outcome:
    """A variant that no gate judges."""
    learns = isinstance(request, LearnRequest)
    data = [task.data for task in request.tasks] if isinstance(request, LearnRequest) else [request.data]
    origin = Origin.INCREMENTAL if learns else Origin.TRAINED
    return Outcome(
        name=request.name,
        input_hash=request.input_hash,
        passed=True,
        variant=trained_variant(*data, base=request.base),
        origin=origin,
        rank=8,
        rungs=(_rung(origin, 0.9, GateVerdict.NOT_NEEDED),),
        repair_seconds=40.0,
        reason="GateNotNeeded",
        message="accuracy 90.0%",
        data=digest_of({"together": data}) if learns else None,
    )


def passed(request: ExtractRequest | AdaptRequest) -> Outcome:
    """A variant that passed its gate."""
    if isinstance(request, ExtractRequest):
        name, variant, input_hash, origin = (
            request.name,
            digest_of({"extract": request.checkpoint}),
            request.input_hash,
            Origin.EXTRACTED,
        )
    else:
        (item,) = request.items
        variant = adapted_variant(item.reference, request.new_base)
        name, input_hash, origin = item.name, request.item_hash(item), Origin.RELORA
    return Outcome(
        name=name,
        input_hash=input_hash,
        passed=True,
        variant=variant,
        origin=origin,
        rank=8,
        rungs=(_rung(Origin.COPIED, 0.80, GateVerdict.FAILED), _rung(origin, 0.91, GateVerdict.PASSED)),
        repair_seconds=12.4,
        reason="GatePassed",
        message="0.91 against 0.92",
    )


def refused(request: AdaptRequest, reason: str = "GateFailed") -> Summary:
    """A ladder that was exhausted."""
    (item,) = request.items
    outcome = Outcome(
        name=item.name,
        input_hash=request.item_hash(item),
        passed=False,
        rungs=(_rung(Origin.COPIED, 0.7, GateVerdict.FAILED),),
        reason=reason,
        message="0.70 against 0.92",
    )
    return Summary(kind=JobKind.ADAPT, ok=True, outcomes=(outcome,))


def _rung(origin: Origin, score: float, verdict: GateVerdict) -> RungResult:
    return RungResult(
        origin=origin,
        verdict=verdict,
        score=score,
        reference=0.92,
        interval=Interval(lower=-0.02, upper=0.01),
        samples=500,
        retention=0.95,
        seconds=3.0,
    )


def base_model(version: str = "v1", **spec: Any) -> Doc:
    versions = [{"name": v, "source": {"uri": f"pvc://models/{v}"}} for v in ("v1", "v2", "v3")]
    body = {"store": {"claimName": "store"}, "versions": versions, "version": version, **spec}
    return {
        "apiVersion": "readapt.dev/v1alpha1",
        "kind": "BaseModel",
        "metadata": {"name": "base", "namespace": NAMESPACE},
        "spec": body,
    }


def lora_adapter(name: str, source: Doc | None = None, data: bool = True, **spec: Any) -> Doc:
    body: Doc = {
        "baseModelRef": {"name": "base"},
        "source": source or {"adapter": {"uri": f"pvc://adapters/{name}", "baseVersion": "v1"}},
        **spec,
    }
    if data:
        body["data"] = _data(name)
    return {
        "apiVersion": "readapt.dev/v1alpha1",
        "kind": "LoRAAdapter",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": body,
    }


def checkpoint(name: str) -> Doc:
    return {"checkpoint": {"uri": f"pvc://checkpoints/{name}", "baseVersion": "v1"}}


def tasks(*names: str) -> Doc:
    """A source that learns these in order."""
    return {"tasks": [{"name": name, "data": _data(name)} for name in names]}


def _data(name: str) -> Doc:
    return {split: {"uri": f"pvc://data/{name}/{split}.jsonl"} for split in ("train", "validation")}
