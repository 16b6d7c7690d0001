"""The train Job: a Base and a Data artifact in, a LoRA variant out that is best on the validation examples.

A Job that was stopped goes on from its journal. The variant is scored beside the base alone, on examples that nothing
else sees, and published as it is.
"""

from __future__ import annotations

import time

from readapt_api.artifacts import Origin, Provenance
from readapt_api.conditions import GATE_NOT_NEEDED
from readapt_api.jobs import Outcome, RungResult, TrainRequest
from readapt_runtime.adapt.base import fix_threads, load_base
from readapt_runtime.adapt.data import read_splits
from readapt_runtime.adapt.evidence import circumstances
from readapt_runtime.adapt.journal import Journal
from readapt_runtime.adapt.measure import Measure
from readapt_runtime.device import choose_repeatable
from readapt_runtime.jobs.variant import publish_variant
from readapt_runtime.lora_format import base_shapes, write_adapter
from readapt_runtime.progress import Log
from readapt_runtime.report.keeping import keep_report
from readapt_runtime.store import Store
from readapt_runtime.training.score import score
from readapt_runtime.training.training import evidence_of, recipe_of, train


def run(request: TrainRequest, store: Store, log: Log) -> Outcome:
    """Trains, scores, publishes and records. Raises what ``train``, the data and the store raise."""
    begin = time.monotonic()
    fix_threads()
    artifact = store.open(request.base)
    splits = read_splits(store.open(request.data).path, request.metric)
    recipe = recipe_of(request)
    base = load_base(artifact.path, request.base, device=choose_repeatable("auto"))
    journal = Journal(store, request.input_hash, circumstances(base), log)
    tuned = train(base, base_shapes(artifact.path), splits, recipe, journal, log)
    measure = Measure.of(request.metric, splits, base)
    rung = score(Origin.TRAINED, measure, base, tuned.adapter, splits.gate, time.monotonic() - begin)
    provenance = Provenance(origin=Origin.TRAINED, source=request.data, input_hash=request.input_hash)
    with store.stage() as folder:
        write_adapter(folder, tuned.adapter, request.base)
        texts = [example.prompt for example in splits.gate]
        variant = publish_variant(store, folder, artifact, base, tuned.adapter.rank, provenance, texts)
    evidence = {
        "request": request.to_wire(),
        **circumstances(base),
        **evidence_of(tuned, recipe),
        "rungs": [rung.to_wire()],
        "leaked": splits.leaked,
        "repeated": splits.repeated,
        "choices": list(splits.choices),
    }
    outcome = made(request.name, request.input_hash, variant, tuned.adapter.rank, rung)
    outcome = outcome.model_copy(update={"evidence": store.write_evidence(request.input_hash, evidence)})
    outcome = keep_report(store, outcome, evidence, log)
    store.write_result(request.input_hash, outcome)
    store.drop_progress(request.input_hash)
    log.info("trained", steps=tuned.best.step, score=rung.score, base=rung.reference, samples=rung.samples)
    return outcome


def made(name: str, input_hash: str, variant: str, rank: int, rung: RungResult) -> Outcome:
    """The outcome of work that no gate judges."""
    return Outcome(
        name=name,
        input_hash=input_hash,
        passed=True,
        variant=variant,
        origin=rung.origin,
        rank=rank,
        rungs=(rung,),
        repair_seconds=rung.seconds,
        reason=GATE_NOT_NEEDED,
        message=rung.message,
    )
