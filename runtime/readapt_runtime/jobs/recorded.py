"""Answers that the store already has.

In: a request. Out: the summary of an equal, finished Job whose artifacts are still there, or nothing. A Job that lost
its termination message runs again and ends here, within a second and with the same digests, because nothing below
imports torch. ``fetch`` is never answered from a record: its source may have changed.
"""

from __future__ import annotations

from readapt_api.contract import Digest
from readapt_api.jobs import (
    AdaptRequest,
    DriftOutcome,
    DriftRequest,
    ExtractRequest,
    JobKind,
    LearnRequest,
    Outcome,
    Request,
    Summary,
    TrainRequest,
)
from readapt_runtime.store import Store


def recorded(request: Request, store: Store) -> Summary | None:
    """The recorded summary, or None when there is work to do."""
    match request:
        case DriftRequest():
            drift = store.read_result(request.input_hash, DriftOutcome)
            if drift is not None and store.has(drift.digest):
                return Summary(kind=JobKind.DRIFT, ok=True, drift=drift)
        case ExtractRequest() | TrainRequest() | LearnRequest():
            outcome = recorded_outcome(store, request.input_hash, request.name)
            if outcome is not None:
                return Summary(kind=request.kind, ok=True, outcomes=(outcome,))
        case AdaptRequest():
            outcomes = [recorded_outcome(store, request.item_hash(item), item.name) for item in request.items]
            found = tuple(outcome for outcome in outcomes if outcome is not None)
            if len(found) == len(outcomes):
                return Summary(kind=JobKind.ADAPT, ok=True, outcomes=found)
    return None


def recorded_outcome(store: Store, input_hash: Digest, name: str) -> Outcome | None:
    """The recorded outcome of one item under its present name, when what it names is still there."""
    outcome = store.read_result(input_hash, Outcome)
    named = () if outcome is None else [digest for digest in (outcome.variant, outcome.data) if digest is not None]
    if outcome is None or not all(store.has(digest) for digest in named):
        return None
    return outcome.model_copy(update={"name": name})
