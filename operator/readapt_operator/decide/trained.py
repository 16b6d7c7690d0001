"""Adapters that are made of examples alone: trained once, or learning task after task.

Their source has no digest of its own: what names it is the work that makes them, without the base. They belong to the
version of the base that was wished for when they were first trained; a task that is appended is learned there as well,
and then carried over like the rest. The variant of the shorter sequence is served until then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from readapt_api import conditions as c
from readapt_api.adaptation import Metric
from readapt_api.digest import digest_of
from readapt_api.jobs import FetchRequest, FetchRole, LearnRequest, LearnTask, TrainRequest
from readapt_api.v1alpha1.lora_adapter import Data, TaskSource, TaskStatus, TrainSource
from readapt_operator.builders.job import fetch_source
from readapt_operator.decide.adapter_pass import AdapterPass, pursue_variant
from readapt_operator.decide.jobs import Wording
from readapt_operator.decide.plan import Verdict, stalled


def fetch_data(
    at: AdapterPass, data: Data, recorded: Mapping[str | None, str | None], what: str
) -> tuple[AdapterPass, str, str | Verdict]:
    """The pass with the fetch noted, the key of this data spec, and its digest or why there is none yet.

    ``recorded``: key -> digest of what has been fetched.
    """
    splits = [
        ("train", data.train),
        ("validation", data.validation),
        ("test", data.test),
        ("inputs", data.inputs),
    ]
    request = FetchRequest(
        role=FetchRole.DATA,
        sources=tuple(fetch_source(source, name) for name, source in splits if source is not None),
        prompt_field=data.prompt_field,
        completion_field=data.completion_field,
    )
    key = request.input_hash
    known = recorded.get(key)
    if known is not None and not at.fetches_again:
        return at, key, known
    at, errand = at.pursue(at.task(request, key), Wording(c.FETCHING, c.SOURCE_FAILED, what))
    fetched = errand.summary.fetch if errand.summary else None
    if fetched is None:
        return at, key, errand.verdict or stalled(c.JOB_FAILED, f"Job {errand.job} left no data")
    return at, key, fetched.digest


def tasks_are_fetched(at: AdapterPass) -> AdapterPass:
    """Never halts, like ``data_is_fetched``: what was learned before is served whatever happens to a new task."""
    tasks = at.source
    if not isinstance(tasks, tuple):
        return at
    recorded: dict[str | None, str | None] = {t.data_key: t.data_digest for t in at.records.tasks}
    records, missing = [], None
    for task in tasks:
        at, key, found = fetch_data(at, task.data, recorded, f"data of task {task.name}")
        if isinstance(found, Verdict):
            missing = missing or found
        else:
            records.append(TaskStatus(name=task.name, data_key=key, data_digest=found))
    at = replace(at, records=at.records.model_copy(update={"tasks": tuple(records)}))
    if missing is not None:
        return replace(at, data=missing)
    return replace(at, task_data=tuple(record.data_digest for record in records))


def train(at: AdapterPass, source: TrainSource) -> AdapterPass:
    """The variant on the version that it is trained on; the last one stays in service while new data are fetched."""
    if not isinstance(at.data, str):
        return at if at.own else at.halt(at.data or stalled(c.DATA_MISSING, "spec.data is needed to train from"))
    metric = at.adapter.spec.gate.metric
    request = TrainRequest(
        name=at.adapter.served_name,
        base=at.native,
        data=at.data,
        rank=min(source.rank, at.base.spec.serving.max_rank),
        alpha=source.alpha,
        target_modules=source.target_modules,
        max_steps=source.max_steps,
        learning_rate=source.learning_rate,
        batch_size=source.batch_size,
        metric=metric if metric.needs_labels else Metric.ACCURACY,
    )
    at = _named(at, {"train": source.to_wire(), "data": at.data, "metric": request.metric.value})
    if at.own is not None and not at.fetches_again:
        return at
    wording = Wording(c.TRAINING, c.TRAINING_FAILED, "training")
    return pursue_variant(at, at.task(request, request.input_hash), wording, at.native, at.native_version)


def learn(at: AdapterPass, tasks: tuple[TaskSource, ...]) -> AdapterPass:
    """The variant that has learned all tasks; its Job leaves their examples as one, for the gate of later moves."""
    if not at.task_data:
        verdict = at.data if isinstance(at.data, Verdict) else None
        return at if at.own else at.halt(verdict or stalled(c.DATA_MISSING, "no task has data"))
    request = LearnRequest(
        name=at.adapter.served_name,
        base=at.native,
        tasks=tuple(_task(task, data) for task, data in zip(tasks, at.task_data, strict=True)),
        max_rank=at.base.spec.serving.max_rank,
    )
    at = _named(at, {"tasks": [task.to_wire() for task in request.tasks]})
    key = at.records.source_digest
    if at.own is not None and at.records.data_key == key and not at.fetches_again:
        return replace(at, data=at.records.data_digest)
    wording = Wording(c.LEARNING, c.LEARNING_FAILED, f"learning {len(tasks)} tasks")
    at = pursue_variant(at, at.task(request, request.input_hash), wording, at.native, at.native_version)
    if at.verdict is not None:
        return at
    examples = at.outcome.data if at.outcome else None
    if examples is None:
        return at.halt(stalled(c.JOB_FAILED, "the Job that learned the tasks left no data"))
    records = at.records.model_copy(update={"data_key": key, "data_digest": examples})
    return replace(at, records=records, data=examples)


def _task(task: TaskSource, data: str) -> LearnTask:
    return LearnTask(
        name=task.name,
        data=data,
        rank=task.rank,
        max_steps=task.max_steps,
        learning_rate=task.learning_rate,
        batch_size=task.batch_size,
    )


def _named(at: AdapterPass, source: dict[str, object]) -> AdapterPass:
    return replace(at, records=at.records.model_copy(update={"source_digest": digest_of(source)}))
