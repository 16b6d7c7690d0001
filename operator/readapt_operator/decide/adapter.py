"""One adapter, from its source to a passing variant for the wished version.

Two ordered tuples of stages: what an adapter needs whatever is wished for, then the move to the wished version. In
between the base measures the drift of the moves that are due (``AdapterPass.move``). Each stage looks at the records
(as they will be after this pass), folds in the result of a Job that has ended, and either hands on or halts with a
verdict. Work that is under way halts; nothing is remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from readapt_api import conditions as c
from readapt_api.jobs import (
    AdaptationSettings,
    AdaptItem,
    AdaptRequest,
    ExtractRequest,
    FetchRequest,
    FetchRole,
    GateSettings,
)
from readapt_api.v1alpha1.lora_adapter import AdapterSource, CheckpointSource, LoRAAdapterResource, TrainSource
from readapt_operator.builders.job import fetch_source
from readapt_operator.decide.adapter_pass import AdapterPass, pursue_variant
from readapt_operator.decide.jobs import Wording
from readapt_operator.decide.plan import State, Verdict, stalled, working
from readapt_operator.decide.trained import fetch_data, learn, tasks_are_fetched, train
from readapt_operator.decide.variants import native
from readapt_operator.decide.versions import Drifts


def served_name_is_free(at: AdapterPass) -> AdapterPass:
    """The older object wins a served name; the base's own is its own."""
    if not at.conflicting:
        return at
    name, base = at.adapter.served_name, at.base.metadata.name
    holder = "the base itself" if name == base else f"an older adapter of {base}"
    return at.halt(stalled(c.NAME_CONFLICT, f"{holder} is served as {name!r}"))


def native_base_is_fetched(at: AdapterPass) -> AdapterPass:
    """Sources are checked against the shapes of the base that they were made for."""
    version = at.native_version
    found = at.versions.known[version]
    if isinstance(found, Verdict):
        return at.halt(_waiting(found) if version == at.base.spec.version else _with_base(found))
    return replace(at, native=found)


def source_is_fetched(at: AdapterPass) -> AdapterPass:
    """An adapter becomes its own Native variant; a checkpoint waits for extraction; others are made of data."""
    if not isinstance(at.source, AdapterSource | CheckpointSource):
        return at
    pinned = at.source.digest
    known = at.records.source_digest if pinned in (None, at.records.source_digest) else None
    is_adapter = isinstance(at.source, AdapterSource)
    if known is not None and not at.fetches_again and (not is_adapter or at.own is not None):
        return at
    source = at.source.model_copy(update={"digest": known}) if known and at.fetches_again else at.source
    request = FetchRequest(
        role=FetchRole.ADAPTER if is_adapter else FetchRole.CHECKPOINT,
        sources=(fetch_source(source),),
        base=at.native,
        max_rank=at.base.spec.serving.max_rank,
    )
    at, errand = at.pursue(at.task(request, request.input_hash), Wording(c.FETCHING, c.SOURCE_FAILED, "source"))
    fetched = errand.summary.fetch if errand.summary else None
    if fetched is None or (is_adapter and fetched.variant is None):
        return at.halt(errand.verdict or stalled(c.JOB_FAILED, f"Job {errand.job} left no result of a fetch"))
    records = at.records.model_copy(update={"source_digest": fetched.digest})
    if is_adapter:
        return replace(at, records=records).record(native(fetched, at.native, at.native_version, errand.job))
    return replace(at, records=records)


def data_is_fetched(at: AdapterPass) -> AdapterPass:
    """Never halts: an adapter whose variant exists is served whatever happens to its data."""
    data = at.adapter.spec.data
    if data is None:
        return at
    recorded = {at.records.data_key: at.records.data_digest}
    at, key, found = fetch_data(at, data, recorded, "data")
    if isinstance(found, Verdict):
        return replace(at, data=found)
    return replace(at, records=at.records.model_copy(update={"data_key": key, "data_digest": found}), data=found)


def native_variant_is_there(at: AdapterPass) -> AdapterPass:
    """A checkpoint is extracted once, and gated against itself; an adapter of data alone is trained."""
    source = at.source
    if isinstance(source, TrainSource):
        return train(at, source)
    if isinstance(source, tuple):
        return learn(at, source)
    if isinstance(source, AdapterSource) or at.own is not None:
        return at
    if at.gated and not isinstance(at.data, str):
        return at.halt(at.data or stalled(c.DATA_MISSING, "spec.data is needed to compare the extract with its source"))
    request = ExtractRequest(
        name=at.adapter.served_name,
        base=at.native,
        checkpoint=at.records.source_digest or "",
        fixed_rank=source.rank.fixed,
        energy=source.rank.energy,
        relative_error=source.rank.relative_error,
        budget=source.rank.budget,
        max_rank=min(source.max_rank, at.base.spec.serving.max_rank),
        target_modules=source.target_modules,
        data=_gate_data(at),
        gate=_gate(at.adapter),
    )
    wording = Wording(c.EXTRACTING, c.EXTRACTION_FAILED, "extracting")
    return pursue_variant(at, at.task(request, request.input_hash), wording, at.native, source.base_version)


def wished_version_is_fetched(at: AdapterPass) -> AdapterPass:
    found = at.versions.known[at.base.spec.version]
    return at.halt(_waiting(found)) if isinstance(found, Verdict) else replace(at, target=found)


def adapting_is_possible(at: AdapterPass) -> AdapterPass:
    """To another base only with data, without which nobody could tell what was lost, or by a wish not to be told."""
    if at.passing is not None or isinstance(at.data, str) or not at.gated:
        return at
    missing = f"spec.data (or gate.mode Skip) is needed to move to {at.base.spec.version}"
    return at.halt(at.data or stalled(c.DATA_MISSING, missing))


def drift_is_measured(at: AdapterPass) -> AdapterPass:
    found = at.drifts.known[at.move] if at.move else None
    return at.halt(_with_base(found)) if isinstance(found, Verdict) else at


def wished_variant_is_there(at: AdapterPass) -> AdapterPass:
    """The reference is the variant on the native base, so that losses do not add up over upgrades."""
    reference = at.own
    drift = at.drifts.known[at.move] if at.move else None
    if not isinstance(drift, str) or reference is None:
        return at
    item = AdaptItem(
        name=at.adapter.served_name,
        reference=reference.digest or "",
        data=_gate_data(at),
        adaptation=_adaptation(at.adapter),
        gate=_gate(at.adapter),
    )
    request = AdaptRequest(old_base=at.native, new_base=at.target, drift=drift, items=(item,))
    wording = Wording(c.ADAPTING, c.ADAPTATION_FAILED, f"adapting to {at.base.spec.version}")
    return pursue_variant(at, at.task(request, request.item_hash(item)), wording, at.target, at.base.spec.version)


Stage = Callable[[AdapterPass], AdapterPass]
FOUNDATION: tuple[Stage, ...] = (
    served_name_is_free,
    native_base_is_fetched,
    source_is_fetched,
    data_is_fetched,
    tasks_are_fetched,
    native_variant_is_there,
    wished_version_is_fetched,
    adapting_is_possible,
)
MOVE: tuple[Stage, ...] = (
    drift_is_measured,
    wished_variant_is_there,
)


def found_adapter(at: AdapterPass) -> AdapterPass:
    """Runs the stages up to where the way to the wished version is known."""
    return _run(at, FOUNDATION)


def move_adapter(at: AdapterPass, drifts: Drifts) -> AdapterPass:
    """Runs the others; ``drifts`` knows about ``at.move``."""
    return _run(replace(at, drifts=drifts), MOVE)


def _run(at: AdapterPass, stages: Iterable[Stage]) -> AdapterPass:
    """Up to the first stage that halts. An adapter that trips over a bug of ours halts there, and it alone."""
    for stage in stages:
        if at.verdict is not None:
            break
        try:
            at = stage(at)
        except Exception as bug:  # noqa: BLE001 - the loop over adapters: at the top of the pass the base and its other
            # adapters would stand still as well, for as long as this one is there. Logged and counted by the loop.
            return replace(at, bug=bug).halt(stalled(c.BUG, f"a bug in Readapt, please report it: {bug!r}"))
    return at


def _waiting(verdict: Verdict) -> Verdict:
    """The wished version is the base's own affair: the base stalls, its adapters wait."""
    return working(c.WAITING_FOR_BASE, verdict.message, verdict.again_s)


def _with_base(verdict: Verdict) -> Verdict:
    """What the base does for adapters alone: they wait while it works and stall with it."""
    return verdict if verdict.state is State.STALLED else _waiting(verdict)


def _gate_data(at: AdapterPass) -> str | None:
    """A skipped gate looks at no data, so that data which cannot be had does not hold it up."""
    return at.data if at.gated and isinstance(at.data, str) else None


def _gate(adapter: LoRAAdapterResource) -> GateSettings:
    gate = adapter.spec.gate
    return GateSettings(
        mode=gate.mode,
        metric=gate.metric,
        max_regression=gate.max_regression,
        confidence=gate.confidence,
        max_samples=gate.max_samples,
    )


def _adaptation(adapter: LoRAAdapterResource) -> AdaptationSettings:
    wish = adapter.spec.adaptation
    return AdaptationSettings(
        policy=wish.policy,
        min_retention=wish.min_retention,
        trials=wish.search.trials,
        max_steps=wish.tuning.max_steps,
        learning_rate=wish.tuning.learning_rate,
        batch_size=wish.tuning.batch_size,
    )
