"""The matrix adapter x base version, and how results become its cells."""

from __future__ import annotations

from collections.abc import Collection

from readapt_api import conditions as c
from readapt_api.artifacts import Origin
from readapt_api.jobs import FetchOutcome, Outcome, RungResult
from readapt_api.v1alpha1.lora_adapter import LoRAAdapterResource, LoRAAdapterStatus, VariantStatus
from readapt_operator.status import shorten

MAX_VARIANTS = 16
OWN_ORIGINS = (Origin.NATIVE, Origin.EXTRACTED, Origin.TRAINED, Origin.INCREMENTAL)
"""Of variants that came about on the base that they are for."""
_MESSAGE_CHARS = 500


def variant_at(records: LoRAAdapterStatus, base_digest: str, source_digest: str | None) -> VariantStatus | None:
    """The cell of a base, passed or not."""
    cell = (base_digest, source_digest)
    return next((v for v in records.variants if (v.base_digest, v.source_digest) == cell), None)


def record_variant(records: LoRAAdapterStatus, found: VariantStatus, keep: Collection[str] = ()) -> LoRAAdapterStatus:
    """Replaces or appends the cell; the oldest cells of bases that are not in ``keep`` make room."""
    cell = (found.base_digest, found.source_digest)
    others = [v for v in records.variants if (v.base_digest, v.source_digest) != cell]
    while len(others) >= MAX_VARIANTS:
        others.remove(next((v for v in others if v.base_digest not in keep), others[0]))
    return records.model_copy(update={"variants": (*others, found)})


def native_version(adapter: LoRAAdapterResource, wished: str) -> str:
    """The version of its base that an adapter is made for.

    The source says so, or the record of where it was first trained: what it learns later it learns there, too. What
    is yet to be trained is trained on the wished version.
    """
    given = adapter.spec.source.adapter or adapter.spec.source.checkpoint
    if given is not None:
        return given.base_version
    trained = (v.base_version for v in adapter.status.variants if v.passed and v.origin in OWN_ORIGINS)
    return next(trained, wished)


def native(fetched: FetchOutcome, base_digest: str, version: str, job: str) -> VariantStatus:
    """The variant that a fetched adapter is on its own base."""
    return VariantStatus(
        base_digest=base_digest,
        source_digest=fetched.digest,
        base_version=version,
        digest=fetched.variant,
        input_hash=fetched.input_hash,
        origin=Origin.NATIVE,
        passed=True,
        reason=c.GATE_NOT_NEEDED,
        message="the weights that were given, on the base that they were made for",
        rank=fetched.rank,
        job=job,
    )


def from_outcome(outcome: Outcome, base_digest: str, source: str, version: str, job: str) -> VariantStatus:
    """A result of extract, train, learn or adapt; the last rung decided."""
    last = outcome.rungs[-1] if outcome.rungs else None
    passed = outcome.passed and outcome.variant is not None
    reason = outcome.reason or (c.GATE_PASSED if passed else c.GATE_FAILED)
    return VariantStatus(
        base_digest=base_digest,
        source_digest=source,
        base_version=version,
        digest=outcome.variant if passed else None,
        input_hash=outcome.input_hash,
        origin=outcome.origin,
        passed=passed,
        reason=reason,
        message=shorten(outcome.message or reason, _MESSAGE_CHARS),
        rank=outcome.rank,
        repair_seconds=round(outcome.repair_seconds),
        job=job,
        evidence=outcome.evidence,
        report=outcome.report,
        copy_score=_copy_score(outcome),
    ).model_copy(update=_scores(last))


def _scores(rung: RungResult | None) -> dict[str, object]:
    if rung is None:
        return {}
    return {
        "metric": rung.metric,
        "score": decimal(rung.score),
        "reference": decimal(rung.reference),
        "interval": f"[{rung.interval.lower:+.4f}, {rung.interval.upper:+.4f}]",
        "retention": None if rung.retention is None else decimal(rung.retention),
    }


def _copy_score(outcome: Outcome) -> str | None:
    copied = next((r for r in outcome.rungs if r.origin is Origin.COPIED), None)
    return None if copied is None else decimal(copied.score)


def decimal(value: float) -> str:
    """Floats are not for resources: four decimals as a string."""
    return f"{value:.4f}"
