"""The drift Job: two Base artifacts in, one Drift artifact out."""

from __future__ import annotations

from readapt_api.artifacts import ArtifactKind
from readapt_api.jobs import DriftOutcome, DriftRequest
from readapt_runtime.drift import measure
from readapt_runtime.progress import Log
from readapt_runtime.store import Store


def run(request: DriftRequest, store: Store, log: Log) -> DriftOutcome:
    """Measures, publishes and records. Raises what ``measure`` and the store raise."""
    old, new = store.open(request.old_base), store.open(request.new_base)
    with store.stage() as folder:
        summary = measure(old.path, new.path, folder, log, request.rank)
        manifest = store.publish(ArtifactKind.DRIFT, folder)
    outcome = DriftOutcome(
        input_hash=request.input_hash,
        digest=manifest.digest,
        relative_norm=summary.relative_norm,
        captured_energy=summary.captured_energy,
    )
    store.write_result(request.input_hash, outcome)
    log.info("drift measured", digest=manifest.digest, relative_norm=round(summary.relative_norm, 6))
    return outcome
