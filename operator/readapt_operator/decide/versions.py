"""The base's own work: versions fetched into the store, and the drift between pairs of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from readapt_api import conditions as c
from readapt_api.jobs import DriftRequest, FetchRequest, FetchRole
from readapt_api.v1alpha1.base_model import BaseModelResource, DriftStatus, VersionStatus
from readapt_api.v1alpha1.shared import Source
from readapt_operator.builders.job import Task, fetch_source
from readapt_operator.builders.meta import Owner
from readapt_operator.decide.jobs import Errand, Start, Wording, pursue, retry_of
from readapt_operator.decide.plan import Verdict, stalled
from readapt_operator.decide.variants import native_version
from readapt_operator.observed import Observed

_MAX_RECORDS = 32
Pair = tuple[str, str]
"""(old base digest, new base digest)."""


@dataclass(frozen=True, slots=True)
class Versions:
    """Digest of each needed version, or why there is none yet."""

    known: Mapping[str, str | Verdict]
    records: tuple[VersionStatus, ...]
    tasks: tuple[Task, ...] = ()
    starts: tuple[Start, ...] = ()

    def digest(self, version: str) -> str | None:
        found = self.known.get(version)
        return found if isinstance(found, str) else None


@dataclass(frozen=True, slots=True)
class Drifts:
    """The same for pairs of base digests."""

    known: Mapping[Pair, str | Verdict] = field(default_factory=dict)
    records: tuple[DriftStatus, ...] = ()
    tasks: tuple[Task, ...] = ()
    starts: tuple[Start, ...] = ()


def resolve_versions(seen: Observed, base: BaseModelResource) -> Versions:
    """The wished version, the served one, and every version that an adapter was made for."""
    records = {r.name: r for r in base.status.versions}
    known: dict[str, str | Verdict] = {}
    errands: list[Errand] = []
    again = seen.fetches_again(retry_of(base.metadata.annotations))
    for name in _needed(seen, base):
        source = base.spec.source_of(name)
        record = records.get(name)
        if record is not None and _answers(record, source, name == base.spec.version):
            if not again or source is None:
                known[name] = record.digest
                continue
            source = source.model_copy(update={"digest": record.digest})
        if source is None:
            known[name] = stalled(c.UNKNOWN_VERSION, f"{base.metadata.name} has no version {name!r}")
            continue
        errand = _fetch(seen, base, name, source)
        errands.append(errand)
        fetched = errand.summary.fetch if errand.summary else None
        if fetched is None:
            known[name] = errand.verdict or stalled(c.JOB_FAILED, f"Job {errand.job} left no result of a fetch")
            continue
        known[name] = fetched.digest
        records.pop(name, None)  # a new record goes to the end of the order
        records[name] = VersionStatus(
            name=name,
            uri=source.uri,
            digest=fetched.digest,
            size_bytes=fetched.size_bytes,
            architecture=fetched.architecture,
        )
    kept = _trim(records, set(known))
    return Versions(known, kept, tuple(e.task for e in errands), tuple(e.start for e in errands if e.start))


def _needed(seen: Observed, base: BaseModelResource) -> tuple[str, ...]:
    named = [native_version(a, base.spec.version) for a in seen.adapters]
    served = [base.status.version] if base.status.version else []
    return tuple(dict.fromkeys([base.spec.version, *served, *named]))


def _answers(record: VersionStatus, source: Source | None, wished: bool) -> bool:
    """Of a version that is no longer listed the record is good enough to adapt from, not to be served.

    A digest that was pinned later must be the one that was found.
    """
    if source is None:
        return not wished
    return record.uri == source.uri and source.digest in (None, record.digest)


def _fetch(seen: Observed, base: BaseModelResource, name: str, source: Source) -> Errand:
    request = FetchRequest(role=FetchRole.BASE, sources=(fetch_source(source),))
    retry = retry_of(base.metadata.annotations)
    task = Task(Owner.of(base), base.metadata.name, request, request.input_hash, retry)
    wording = Wording(c.FETCHING, c.SOURCE_FAILED, f"fetching version {name}")
    return pursue(task, seen, base.spec.jobs.max_attempts, wording)


def _trim(records: dict[str, VersionStatus], needed: set[str]) -> tuple[VersionStatus, ...]:
    surplus = max(0, len(records) - _MAX_RECORDS)
    dropped = {name for name in list(records) if name not in needed}
    dropped = set(sorted(dropped, key=list(records).index)[:surplus])
    return tuple(r for name, r in records.items() if name not in dropped)


def resolve_drifts(seen: Observed, base: BaseModelResource, pairs: Iterable[Pair]) -> Drifts:
    """Once per pair, whoever needs it."""
    records = {(r.old_digest, r.new_digest): r for r in base.status.drifts}
    known: dict[Pair, str | Verdict] = {}
    errands: list[Errand] = []
    again = seen.fetches_again(retry_of(base.metadata.annotations))
    for pair in dict.fromkeys(pairs):
        if pair in records and not again:
            known[pair] = records[pair].digest
            continue
        errand = _measure(seen, base, pair)
        errands.append(errand)
        found = errand.summary.drift if errand.summary else None
        if found is None:
            known[pair] = errand.verdict or stalled(c.JOB_FAILED, f"Job {errand.job} left no drift")
            continue
        known[pair] = found.digest
        records[pair] = DriftStatus(
            old_digest=pair[0],
            new_digest=pair[1],
            digest=found.digest,
            relative_norm=f"{found.relative_norm:.4g}",
            report=found.report,
        )
    kept = tuple(records.values())[-_MAX_RECORDS:]
    return Drifts(known, kept, tuple(e.task for e in errands), tuple(e.start for e in errands if e.start))


def _measure(seen: Observed, base: BaseModelResource, pair: Pair) -> Errand:
    request = DriftRequest(old_base=pair[0], new_base=pair[1])
    retry = retry_of(base.metadata.annotations)
    task = Task(Owner.of(base), base.metadata.name, request, request.input_hash, retry)
    wording = Wording(c.MEASURING_DRIFT, c.DRIFT_FAILED, "measuring the drift of the base")
    return pursue(task, seen, base.spec.jobs.max_attempts, wording)
