"""What the stages of an adapter's way read and hand on, and how a piece of work becomes a variant."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from readapt_api import conditions as c
from readapt_api.adaptation import GateMode
from readapt_api.jobs import Outcome, Request
from readapt_api.v1alpha1.base_model import BaseModelResource
from readapt_api.v1alpha1.lora_adapter import (
    AdapterSource,
    CheckpointSource,
    LoRAAdapterResource,
    LoRAAdapterStatus,
    TaskSource,
    TrainSource,
    VariantStatus,
)
from readapt_operator.builders.job import Task
from readapt_operator.builders.meta import Owner
from readapt_operator.decide.jobs import Errand, Start, Wording, pursue, retry_of
from readapt_operator.decide.plan import Verdict, stalled
from readapt_operator.decide.variants import OWN_ORIGINS, from_outcome, native_version, record_variant, variant_at
from readapt_operator.decide.versions import Drifts, Pair, Versions
from readapt_operator.observed import Observed


@dataclass(frozen=True, slots=True)
class AdapterPass:
    """What the stages read and hand on."""

    seen: Observed
    base: BaseModelResource
    adapter: LoRAAdapterResource
    versions: Versions
    conflicting: bool
    """The base itself or an older adapter of it has the served name."""
    records: LoRAAdapterStatus
    drifts: Drifts = field(default_factory=Drifts)
    """Of the moves of all adapters: known once every adapter has said where it has to go."""
    tasks: tuple[Task, ...] = ()
    starts: tuple[Start, ...] = ()
    native: str = ""
    """Digest of the base version that the source was made for."""
    target: str = ""
    """Digest of the wished base version."""
    data: str | Verdict | None = None
    """Digest of the examples that judge the adapter, or why there is none; None when nothing says where they are."""
    task_data: tuple[str, ...] = ()
    """Digests of the examples of each task, once all are there."""
    outcome: Outcome | None = None
    """Of the work that ended in this pass."""
    verdict: Verdict | None = None
    bug: Exception | None = None
    """What a stage raised; the loop logs and counts it."""

    @property
    def source(self) -> AdapterSource | CheckpointSource | TrainSource | tuple[TaskSource, ...]:
        given = self.adapter.spec.source
        chosen = given.adapter or given.checkpoint or given.train or given.tasks
        if chosen is None:
            raise ValueError(f"{self.adapter.metadata.name}: no source")  # the schema demands one
        return chosen

    @property
    def native_version(self) -> str:
        """Name of the version that the source belongs to."""
        return native_version(self.adapter, self.base.spec.version)

    @property
    def gated(self) -> bool:
        """Whether variants are compared before they are served."""
        return self.adapter.spec.gate.mode is not GateMode.SKIP

    @property
    def fetches_again(self) -> bool:
        """Whether the user asks for what the store lost."""
        return self.seen.fetches_again(retry_of(self.adapter.metadata.annotations))

    @property
    def passing(self) -> VariantStatus | None:
        """The variant for the wished version."""
        return self.variant(self.target) if self.target else None

    @property
    def own(self) -> VariantStatus | None:
        """The variant on the native base: given, extracted, trained or learned there, never carried there."""
        found = self.variant(self.native)
        return found if found is not None and found.origin in OWN_ORIGINS else None

    @property
    def move(self) -> Pair | None:
        """The way to the wished version, where there is one to go and nothing else is missing."""
        if self.verdict is not None or self.passing is not None or self.native == self.target:
            return None
        return self.native, self.target

    def variant(self, base_digest: str) -> VariantStatus | None:
        """The passing variant for a base."""
        found = variant_at(self.records, base_digest, self.records.source_digest)
        return found if found is not None and found.passed and found.digest else None

    def record(self, found: VariantStatus) -> AdapterPass:
        """The same pass with a cell of the matrix; the served, native and wished ones are never pushed out."""
        served = self.seen.deployment(self.seen.served_revision)
        keep = (self.native, self.target, served.base_digest if served else "")
        return replace(self, records=record_variant(self.records, found, keep))

    def halt(self, verdict: Verdict) -> AdapterPass:
        return replace(self, verdict=verdict)

    def pursue(self, task: Task, wording: Wording) -> tuple[AdapterPass, Errand]:
        """The same pass with the work noted, and where the work stands."""
        errand = pursue(task, self.seen, self.base.spec.jobs.max_attempts, wording)
        starts = (*self.starts, errand.start) if errand.start else self.starts
        return replace(self, tasks=(*self.tasks, task), starts=starts), errand

    def task(self, request: Request, input_hash: str) -> Task:
        retry = retry_of(self.adapter.metadata.annotations)
        return Task(Owner.of(self.adapter), self.base.metadata.name, request, input_hash, retry)


def pursue_variant(at: AdapterPass, task: Task, wording: Wording, base_digest: str, version: str) -> AdapterPass:
    """Work that ends in a variant or in evidence against it; a verdict stands until an input or the wish to retry
    changes."""
    record = variant_at(at.records, base_digest, at.records.source_digest)
    names = {task.name(attempt) for attempt in range(1, at.base.spec.jobs.max_attempts + 1)}
    if record is not None and not record.passed and record.input_hash == task.input_hash and record.job in names:
        return replace(at, tasks=(*at.tasks, task)).halt(stalled(record.reason, record.message))
    at, errand = at.pursue(task, wording)
    outcome = errand.outcome
    if outcome is None:
        return at.halt(errand.verdict or stalled(c.JOB_FAILED, f"Job {errand.job} left no outcome"))
    found = from_outcome(outcome, base_digest, at.records.source_digest or "", version, errand.job)
    at = replace(at.record(found), outcome=outcome)
    return at if found.passed else at.halt(stalled(found.reason, found.message))
