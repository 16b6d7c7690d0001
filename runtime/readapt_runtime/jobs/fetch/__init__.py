"""The fetch Job: a source becomes an artifact that every later Job and pod may trust.

In: a mounted folder or file that somebody wrote. Out: Base, Checkpoint, Data, or a Native variant. The source is read
and hashed each time; what is validated is the copy in the store's volume, so nothing that is judged can change.
"""

from __future__ import annotations

from readapt_api.jobs import FetchOutcome, FetchRequest, FetchRole
from readapt_runtime.progress import Log
from readapt_runtime.store import Store


def run(request: FetchRequest, store: Store, log: Log) -> FetchOutcome:
    """Raises MissingSource, WrongDigest, BadWeights and other Terminal errors naming what is wrong with the source,
    SourceChanged and store errors (Transient) when another attempt may work."""
    match request.role:
        case FetchRole.BASE | FetchRole.CHECKPOINT:
            from readapt_runtime.jobs.fetch.base import fetch_model

            outcome = fetch_model(request, store, log)
        case FetchRole.ADAPTER:
            from readapt_runtime.jobs.fetch.adapter import fetch_adapter

            outcome = fetch_adapter(request, store, log)
        case FetchRole.DATA:
            from readapt_runtime.jobs.fetch.data import fetch_data

            outcome = fetch_data(request, store, log)
    log.info("fetched", role=request.role.value, digest=outcome.digest, bytes=outcome.size_bytes)
    return outcome
