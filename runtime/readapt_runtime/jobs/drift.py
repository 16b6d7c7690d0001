"""The drift Job: two Base artifacts in, one Drift artifact out, and a page that shows it."""

from __future__ import annotations

from readapt_api.artifacts import ArtifactKind
from readapt_api.jobs import DriftOutcome, DriftRequest
from readapt_runtime.drift import measure
from readapt_runtime.progress import Log
from readapt_runtime.report.keeping import keep_drift_report
from readapt_runtime.store import Store


def run(request: DriftRequest, store: Store, log: Log) -> DriftOutcome:
    """Measures, publishes and records. Raises what ``measure`` and the store raise."""
    old, new = store.open(request.old_base), store.open(request.new_base)
    with store.stage() as folder:
        report = measure(old.path, new.path, folder, log, request.rank)
        manifest = store.publish(ArtifactKind.DRIFT, folder)
    outcome = DriftOutcome(
        input_hash=request.input_hash,
        digest=manifest.digest,
        relative_norm=report.relative_norm,
        captured_energy=report.captured_energy,
    )
    outcome = keep_drift_report(store, request, report, outcome, log)
    store.write_result(request.input_hash, outcome)
    log.info("drift measured", digest=manifest.digest, relative_norm=round(report.relative_norm, 6))
    return outcome
