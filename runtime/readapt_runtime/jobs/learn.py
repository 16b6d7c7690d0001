"""The learn Job: a Base and the Data of every task in, one LoRA variant out that has learned them in order (SD-LoRA).

What the first tasks came to is a variant and a record of its own, under a hash that names these tasks alone: a Job
that was stopped, and one that has a task more, go on from the longest record that is there, and within the next task
from its journal. The examples of all tasks are published as one Data artifact, for the gate of later moves.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from readapt_api.adaptation import Metric
from readapt_api.artifacts import ArtifactKind, Origin, Provenance
from readapt_api.contract import Contract, Digest
from readapt_api.digest import canonical_json
from readapt_api.jobs import LearnRequest, Outcome
from readapt_runtime.adapt.base import LoadedBase, fix_threads, load_base
from readapt_runtime.adapt.data import Example, Splits, read_splits, union
from readapt_runtime.adapt.evidence import circumstances
from readapt_runtime.adapt.item import seed_of
from readapt_runtime.adapt.measure import Measure
from readapt_runtime.adapt.share import Share
from readapt_runtime.adapt.suitability import require_room
from readapt_runtime.continual.blocks import Learned, fold
from readapt_runtime.continual.files import factor_blocks, read_learned, write_learned
from readapt_runtime.continual.sequence import Lesson, Task, forgetting, journal_of, learn_task
from readapt_runtime.device import choose_repeatable
from readapt_runtime.jobs.train import made
from readapt_runtime.jobs.variant import PROBE_TEXTS, publish_variant
from readapt_runtime.lora_format import base_shapes
from readapt_runtime.progress import Log
from readapt_runtime.report.keeping import keep_report
from readapt_runtime.store import Artifact, Store
from readapt_runtime.training.score import score


class Prefix(Contract):
    """What the first tasks of a sequence came to; an entry of the store."""

    variant: Digest
    max_rank: int
    """That it is served with."""
    lessons: tuple[Lesson, ...] = ()


def run(request: LearnRequest, store: Store, log: Log) -> Outcome:
    """Learns what is not recorded yet, scores, publishes and records. Raises what its parts raise."""
    begin = time.monotonic()
    fix_threads()
    splits = [read_splits(store.open(task.data).path) for task in request.tasks]
    together = union(splits)
    artifact = store.open(request.base)
    base = load_base(artifact.path, request.base, device=choose_repeatable("auto"))
    for part in splits:
        require_room(base, part)
    work = _Work(request, store, base, artifact, splits)
    learned, done = work.learn(log)
    folded = fold(learned, request.max_rank)
    variant = done.variant if done.max_rank == request.max_rank else work.publish(learned)
    measure = Measure.of(Metric.ACCURACY, together, base)
    rung = score(Origin.INCREMENTAL, measure, base, folded.adapter, together.gate, time.monotonic() - begin)
    evidence = {
        "request": request.to_wire(),
        **circumstances(base),
        "lessons": [lesson.to_wire() for lesson in done.lessons],
        "forgetting": forgetting(done.lessons),
        "discarded": folded.discarded,
        "rungs": [rung.to_wire()],
        "leaked": together.leaked,
        "repeated": together.repeated,
    }
    outcome = made(request.name, request.input_hash, variant, folded.adapter.rank, rung).model_copy(
        update={
            "data": _publish_data(store, together),
            "evidence": store.write_evidence(request.input_hash, evidence),
        }
    )
    outcome = keep_report(store, outcome, evidence, log)
    store.write_result(request.input_hash, outcome)
    log.info("learned all", tasks=len(splits), score=rung.score, forgetting=forgetting(done.lessons))
    return outcome


@dataclass(frozen=True, slots=True)
class _Work:
    """All that the tasks share."""

    request: LearnRequest
    store: Store
    base: LoadedBase
    artifact: Artifact
    splits: Sequence[Splits]

    def learn(self, log: Log) -> tuple[Learned, Prefix]:
        """Goes on from the longest record; every task leaves one, and a variant, before the next begins."""
        wishes, count = self.request.tasks, len(self.splits)
        hashes = [self.request.prefix_hash(n) for n in range(1, count + 1)]
        known, prefix = _longest(self.store, hashes)
        learned = read_learned(self.store.open(prefix.variant).path) if prefix else Learned()
        lessons = prefix.lessons if prefix else ()
        tasks = [Task.of(w, part, seed_of(key)) for w, part, key in zip(wishes, self.splits, hashes, strict=True)]
        shapes = base_shapes(self.artifact.path)
        if known:
            self.store.drop_progress(hashes[known - 1])
        log.info("learning", tasks=count, known=known)
        for n in range(known + 1, count + 1):
            share = Share(log, begin=(n - 1) / count, width=1 / count)
            journal = journal_of(self.store, hashes[n - 1], self.base, learned, share)
            learned, lesson = learn_task(self.base, shapes, learned, tasks[:n], journal, share)
            lessons = (*lessons, lesson)
            prefix = Prefix(variant=self.publish(learned), max_rank=self.request.max_rank, lessons=lessons)
            self.store.write_result(hashes[n - 1], prefix)
            self.store.drop_progress(hashes[n - 1])
        if prefix is None:
            raise ValueError("a request without tasks")  # the contract demands one
        return learned, prefix

    def publish(self, learned: Learned) -> Digest:
        """The variant that has learned as many tasks as ``learned`` has blocks."""
        wishes = self.request.tasks[: len(learned.blocks)]
        provenance = Provenance(
            origin=Origin.INCREMENTAL,
            source=wishes[-1].data,
            input_hash=self.request.input_hash,
            parameters={"tasks": ",".join(wish.name for wish in wishes)},
        )
        parts = [part.gate for part in reversed(self.splits[: len(wishes)])]
        texts = [gate[n].prompt for n in range(PROBE_TEXTS) for gate in parts if n < len(gate)]
        with self.store.stage() as folder:
            folded = write_learned(folder, learned, self.request.base, self.request.max_rank)
            rank, blocks = folded.adapter.rank, factor_blocks(learned)
            return publish_variant(self.store, folder, self.artifact, self.base, rank, provenance, texts, blocks)


def _longest(store: Store, hashes: Sequence[Digest]) -> tuple[int, Prefix | None]:
    """How many of the tasks are learned already, and what they came to."""
    for count in range(len(hashes), 0, -1):
        found = store.read_result(hashes[count - 1], Prefix)
        if found is not None and store.has(found.variant):
            return count, found
    return 0, None


def _publish_data(store: Store, together: Splits) -> Digest:
    """As ``fetch`` stores a user's data; the gate's examples become the test split."""
    parts = {"train": together.train, "validation": (*together.search, *together.stopping), "test": together.gate}
    with store.stage() as folder:
        for name, examples in parts.items():
            (folder / f"{name}.jsonl").write_bytes(b"".join(_line(example) for example in examples))
        return store.publish(ArtifactKind.DATA, folder).digest


def _line(example: Example) -> bytes:
    return canonical_json({"completion": example.completion, "prompt": example.prompt}) + b"\n"
