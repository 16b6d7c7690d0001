"""What ``readapt learn`` does: the work of the learn Job, on directories instead of a store.

``--out`` holds the files of the adapter (``files.py``) and ``lessons.json``: which work each finished task was, by
hash, what it left, and the magnitudes after the last. It is replaced after every task, when all else is there, so that
a run that was killed, or one with more tasks, goes on after the last that was finished; within the next one from the
store in the hidden ``.progress``.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError

from readapt_api.artifacts import Origin
from readapt_api.contract import Contract, Digest
from readapt_api.digest import canonical_json, digest_path
from readapt_api.errors import Terminal
from readapt_api.jobs import MAX_TASKS, LearnRequest, LearnTask
from readapt_runtime.adapt.base import fix_threads, load_base
from readapt_runtime.adapt.data import Example, Splits, read_examples, split
from readapt_runtime.adapt.item import seed_of
from readapt_runtime.adapt.suitability import require_room
from readapt_runtime.continual.blocks import Folded, Learned
from readapt_runtime.continual.files import Magnitudes, magnitudes_of, read_learned, write_learned
from readapt_runtime.continual.sequence import Lesson, Task, forgetting, journal_of, learn_task
from readapt_runtime.examples import BadData
from readapt_runtime.lora_format import base_shapes
from readapt_runtime.out_folder import PROGRESS, BadOut, make_out
from readapt_runtime.progress import ConsoleLog
from readapt_runtime.report.keeping import write_report
from readapt_runtime.store import Store

LESSONS = "lessons.json"


class BadTasks(Terminal):
    """Tasks that are no list of NAME=FILE with distinct names."""


class Lessons(Contract):
    """lessons.json."""

    version: int = 1
    done: tuple[Digest, ...] = Field(default=(), max_length=MAX_TASKS)
    """Names the work of the first task, of the first two, and so on."""
    lessons: tuple[Lesson, ...] = ()
    magnitudes: Magnitudes = Magnitudes(blocks=())


def learn_folders(
    base: Path, tasks: Sequence[str], out: Path, max_rank: int, device: torch.device, **settings: Any
) -> dict[str, object]:
    """Learns what ``out`` does not hold yet and returns what to print; ``settings`` as of LearnTask.

    Raises BadTasks, BadOut and the Terminal errors of the inputs.
    """
    files = _files(tasks)
    if not (out / LESSONS).is_file():
        make_out(out)
    splits = [_split(path) for path in files.values()]
    request = LearnRequest(
        name=out.resolve().name,
        base=digest_path(base),
        tasks=tuple(LearnTask(name=name, data=digest_path(path), **settings) for name, path in files.items()),
        max_rank=max_rank,
    )
    hashes = tuple(request.prefix_hash(count) for count in range(1, len(files) + 1))
    kept, learned = _kept(out, hashes)
    progress = Store(out / PROGRESS)
    lessons = kept.lessons
    fix_threads()
    with ConsoleLog() as log:
        shapes, loaded = base_shapes(base), load_base(base, request.base, device=device)
        for part in splits:
            require_room(loaded, part)
        ready = [Task.of(t, s, seed_of(h)) for t, s, h in zip(request.tasks, splits, hashes, strict=True)]
        for count in range(len(lessons) + 1, len(ready) + 1):
            journal = journal_of(progress, hashes[count - 1], loaded, learned, log)
            learned, lesson = learn_task(loaded, shapes, learned, ready[:count], journal, log)
            lessons = (*lessons, lesson)
            _write(out, learned, request, Lessons(done=hashes[:count], lessons=lessons))
            progress.drop_progress(hashes[count - 1])
    shutil.rmtree(progress.root, ignore_errors=True)
    folded = _write(out, learned, request, Lessons(done=hashes, lessons=lessons))
    write_report(out, log)
    return {
        "origin": Origin.INCREMENTAL.value,
        "tasks": [lesson.task for lesson in lessons],
        "accuracies": list(lessons[-1].accuracies),
        "forgetting": forgetting(lessons),
        "rank": folded.adapter.rank,
        "discarded": folded.discarded,
        "parameters": learned.parameters,
        "seconds": sum(lesson.seconds for lesson in lessons),
        "out": str(out),
    }


def _files(tasks: Sequence[str]) -> dict[str, Path]:
    named = [task.partition("=") for task in tasks]
    wrong = [task for task, (name, _, path) in zip(tasks, named, strict=True) if not name or not path]
    if wrong:
        raise BadTasks(f"--task {wrong[0]}: must be NAME=FILE")
    files = {name: Path(path) for name, _, path in named}
    if len(files) < len(tasks) or len(tasks) > MAX_TASKS:
        raise BadTasks(f"{len(tasks)} tasks with {len(files)} names: names must differ, and {MAX_TASKS} are the most")
    return files


def _split(path: Path) -> Splits:
    """Nine tenths to learn from; the rest, by hash of the prompt, says how much is remembered."""
    if not path.is_file():
        raise BadData(f"{path}: no such file")
    examples = read_examples(path)
    aside = [e for e in examples if int(Example(e.prompt, "").rank("aside"), 16) % 10 == 0]
    return split([e for e in examples if e not in set(aside)], (), aside)


def _kept(out: Path, hashes: Sequence[Digest]) -> tuple[Lessons, Learned]:
    """What an earlier run left of this work. Raises BadOut when ``out`` holds anything else."""
    path = out / LESSONS
    if not path.is_file():
        return Lessons(), Learned()
    try:
        found = Lessons.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise BadOut(f"--out {out}: {LESSONS} cannot be read: {' '.join(str(error).split())[:200]}") from error
    if tuple(hashes[: len(found.done)]) != found.done:
        raise BadOut(
            f"--out {out}: holds {', '.join(x.task for x in found.lessons)}, learned from another base, from other "
            "data or with other settings; tasks can only be appended: name a new folder"
        )
    return found, read_learned(out, found.magnitudes)


def _write(out: Path, learned: Learned, request: LearnRequest, lessons: Lessons) -> Folded:
    """All files anew; ``lessons.json``, which a later run believes, last."""
    with tempfile.TemporaryDirectory(dir=out, prefix=".learning-") as scratch:
        folder = Path(scratch)
        folded = write_learned(folder, learned, request.base, request.max_rank)
        kept = lessons.model_copy(update={"magnitudes": magnitudes_of(learned)})
        for file in sorted(folder.iterdir()):
            file.replace(out / file.name)
        (folder / LESSONS).write_bytes(canonical_json(kept.to_wire()))
        (folder / LESSONS).replace(out / LESSONS)
    return folded
