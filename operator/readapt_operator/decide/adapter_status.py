"""Status of a LoRAAdapter: records as the stages left them, and output computed anew."""

from __future__ import annotations

from datetime import datetime

from readapt_api import conditions as c
from readapt_api.v1alpha1.base_model import UpgradeStatus
from readapt_api.v1alpha1.lora_adapter import LoRAAdapterResource, LoRAAdapterStatus, TrainSource, VariantStatus
from readapt_operator.decide.adapter_pass import AdapterPass
from readapt_operator.decide.plan import State, Verdict, stalled, working
from readapt_operator.decide.served import Served
from readapt_operator.observed import Observed
from readapt_operator.status import Conditions


def summarize_adapter(at: AdapterPass, served: Served, upgrade: UpgradeStatus | None) -> LoRAAdapterStatus:
    """The status to be written, if it differs."""
    name = at.adapter.served_name
    digest = None if at.conflicting else served.digests.get(name)
    count = served.count(name, digest) if digest else 0
    variant = _variant_of(at, digest) or at.passing
    verdict = at.verdict or _serving_verdict(at, served, digest, count) or _data_verdict(at)
    return at.records.model_copy(
        update={
            "observed_generation": at.adapter.metadata.generation,
            "conditions": _conditions(at, served, digest, count, verdict),
            "served_version": served.version if digest and count else None,
            "served_digest": digest if count else None,
            "verified": f"{count}/{len(served.pods)}",
            "progress": _progress(at),
            "origin": variant.origin.value if variant and variant.origin else None,
            "score": variant.score if variant else None,
            "variants": _timed(at, served, upgrade),
        }
    )


def orphan_status(adapter: LoRAAdapterResource, seen: Observed) -> LoRAAdapterStatus:
    """There is no BaseModel of that name."""
    meta = adapter.metadata
    verdict = stalled(
        c.BASE_NOT_FOUND, f"there is no BaseModel {adapter.spec.base_model_ref.name!r} in {meta.namespace}"
    )
    out = Conditions(adapter.status.conditions, meta.generation, seen.stamp)
    for kind in (c.READY, c.UP_TO_DATE, c.SOURCE_READY, c.VARIANT_READY):
        out.set(kind, False, verdict.reason, verdict.message)
    out.stalled(verdict.reason, verdict.message)
    output = {"served_version": None, "served_digest": None, "verified": "0/0", "progress": None}
    return adapter.status.model_copy(
        update={"observed_generation": meta.generation, "conditions": out.done(), **output}
    )


def _conditions(
    at: AdapterPass, served: Served, digest: str | None, count: int, verdict: Verdict | None
) -> tuple[c.Condition, ...]:
    out = Conditions(at.adapter.status.conditions, at.adapter.metadata.generation, at.seen.stamp)
    if digest and count and count == len(served.pods):
        out.set(c.READY, True, c.VERIFIED, f"{digest} is verified on {count} of {count} ready pods of {served.version}")
    else:
        why = verdict or working(c.NOT_SERVED_YET, "not in the served set yet")
        out.set(c.READY, False, why.reason, why.message)
    passing = at.passing
    for kind in (c.UP_TO_DATE, c.VARIANT_READY):
        if passing is not None:
            text = f"{passing.origin} variant for {at.base.spec.version}: {passing.message or passing.reason}"
            out.set(kind, True, passing.reason or c.GATE_PASSED, text)
        else:
            why = at.verdict or working(c.WAITING_FOR_BASE, "the wished version is not there yet")
            out.set(kind, False, why.reason, why.message)
    _source_condition(out, at)
    if verdict is not None and verdict.state is State.STALLED:
        out.stalled(verdict.reason, verdict.message)
    elif verdict is not None and verdict.state is State.WORKING:
        out.reconciling(verdict.reason, verdict.message)
    return out.done()


def _source_condition(out: Conditions, at: AdapterPass) -> None:
    if isinstance(at.data, Verdict):
        out.set(c.SOURCE_READY, False, at.data.reason, at.data.message)
    elif at.records.source_digest is not None and at.native:
        out.set(c.SOURCE_READY, True, c.FETCHED, f"{_of(at)} is {at.records.source_digest}")
    else:
        why = at.verdict or working(c.FETCHING, "the source is not in the store yet")
        out.set(c.SOURCE_READY, False, why.reason, why.message)


def _of(at: AdapterPass) -> str:
    """What the source is, for people."""
    source = at.source
    if isinstance(source, tuple):
        return f"the sequence {', '.join(task.name for task in source)}"
    return "the training on spec.data" if isinstance(source, TrainSource) else source.uri


def _serving_verdict(at: AdapterPass, served: Served, digest: str | None, count: int) -> Verdict | None:
    """What is left to do for an adapter whose variants are all there."""
    if digest is None:
        if at.base.spec.suspend:
            return Verdict(State.HELD, c.SUSPENDED, "spec.suspend of the base is true")
        return working(c.NOT_SERVED_YET, f"its variant joins with version {at.base.spec.version}")
    refusal = served.refusals.get((at.adapter.served_name, digest))
    if refusal is not None:
        return stalled(c.VERIFICATION_FAILED, refusal)
    if at.base.spec.serving.replicas == 0:
        return Verdict(State.HELD, c.NOT_SERVED_YET, "spec.serving.replicas of the base is 0")
    if count < len(served.pods) or not served.pods:
        return working(c.VERIFYING, f"verified on {count} of {len(served.pods)} ready pods")
    return None


def _data_verdict(at: AdapterPass) -> Verdict | None:
    """Data is fetched before it is needed, so that its faults are known before an upgrade."""
    return at.data if isinstance(at.data, Verdict) else None


def _progress(at: AdapterPass) -> str | None:
    """Of the Job that works for it now."""
    jobs = [job for task in at.tasks for job in at.seen.jobs.get(task.wish, ()) if job.active and job.progress]
    return jobs[-1].progress if jobs else None


def _variant_of(at: AdapterPass, digest: str | None) -> VariantStatus | None:
    return next((v for v in at.records.variants if digest is not None and v.digest == digest), None)


def _timed(at: AdapterPass, served: Served, upgrade: UpgradeStatus | None) -> tuple[VariantStatus, ...]:
    """``readySeconds`` once: from the wish for the version to verified in a ready pod."""
    digest = served.digests.get(at.adapter.served_name)
    if digest is None or at.conflicting or upgrade is None or not served.count(at.adapter.served_name, digest):
        return at.records.variants
    since = max(upgrade.started_at, at.adapter.metadata.creation_timestamp)
    seconds = max(0, round((at.seen.now - _parse(since)).total_seconds()))
    return tuple(
        v.model_copy(update={"ready_seconds": seconds})
        if v.digest == digest and v.base_digest == served.base_digest and v.ready_seconds is None
        else v
        for v in at.records.variants
    )


def _parse(stamp: str) -> datetime:
    return datetime.fromisoformat(stamp)
