"""Tasks one after the other: what each leaves, and how well all of them are answered meanwhile.

In: the base, what was learned before, the tasks with their examples. Out: a lesson per task, in order; whoever keeps
them (a Job in the store, a command in a folder) can end after any and go on from there, and within one from its
journal. Of earlier tasks the answers' names are known, never the training examples; those of the gate are read to say
how much is remembered.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from pydantic import TypeAdapter

from readapt_api.contract import Contract, Digest
from readapt_api.jobs import LearnTask
from readapt_runtime.adapt.base import LoadedBase
from readapt_runtime.adapt.comparison import AnswerStream, Pair
from readapt_runtime.adapt.data import Example, Splits
from readapt_runtime.adapt.evidence import circumstances
from readapt_runtime.adapt.forms import LikeliestChoice
from readapt_runtime.adapt.journal import Journal
from readapt_runtime.continual.blocks import Learned
from readapt_runtime.continual.freezing import Reduction, freeze
from readapt_runtime.continual.learning import Course, Pupil, descend
from readapt_runtime.continual.losses import ChoiceLoss
from readapt_runtime.lora_format import LoraAdapter, Shape
from readapt_runtime.progress import Log
from readapt_runtime.store import Store
from readapt_runtime.training.training import new_adapter

ALPHA = 16
"""Of the newest task's LoRA while it is learned; afterwards there are magnitudes."""
REDUCTION = Reduction(energy=0.99, threshold=0.1)
_ROW_SAMPLES = 200
"""Examples per task that say how much of it is remembered."""
_SHARE = TypeAdapter(float)


@dataclass(frozen=True, slots=True)
class Task:
    """One task, ready to be learned."""

    name: str
    splits: Splits
    rank: int
    course: Course

    @property
    def lessons(self) -> tuple[Example, ...]:
        """No more examples than there are steps for."""
        ordered = sorted(self.splits.train, key=lambda e: e.rank("lesson"))
        return tuple(ordered[: self.course.max_steps * self.course.batch_size])

    @classmethod
    def of(cls, wish: LearnTask, splits: Splits, seed: int) -> Task:
        course = Course(wish.max_steps, float(wish.learning_rate), wish.batch_size, seed)
        return cls(wish.name, splits, wish.rank, course)


class Lesson(Contract):
    """What a task left, but for its weights."""

    task: str
    accuracies: tuple[float, ...]
    """On each task so far, this one last, among the answers of all of them."""
    rank: int
    """The largest of its block after reduction; 0 when every direction was dropped."""
    kept_energy: float
    dropped: tuple[str, ...]
    residuals: dict[str, float]
    """Relative distance of its directions to the earlier ones, by module."""
    losses: tuple[float, ...]
    """Of training, step by step."""
    seconds: float


def journal_of(store: Store, work: Digest, base: LoadedBase, learned: Learned, log: Log) -> Journal:
    """The records of the task that ``work`` names together with all before it; ``learned`` is what those came to."""
    return Journal(store, work, {**circumstances(base), "learned": learned.adapter.fingerprint}, log)


def learn_task(
    base: LoadedBase, shapes: Mapping[str, Shape], learned: Learned, tasks: Sequence[Task], journal: Journal, log: Log
) -> tuple[Learned, Lesson]:
    """Learns the last of ``tasks`` on top of the others, which ``learned`` holds; goes on where an earlier run was.

    Whoever keeps the result then drops the progress. Raises Diverged.
    """
    begin = time.monotonic() - journal.earlier_seconds
    task = tasks[-1]
    pupil = Pupil(base, learned, new_adapter(shapes, task.rank, ALPHA), task.course.seed)
    earlier = sorted({choice for other in tasks[:-1] for choice in other.splits.choices})
    with pupil.attached():
        loss = ChoiceLoss(base, task.lessons, task.splits.choices, earlier, journal=journal)
    losses = []
    for value in descend(pupil, loss, loss.lengths, task.course, journal):
        losses.append(value)
        log.progress(len(losses) / task.course.max_steps, f"learning {task.name}")
    frozen = freeze(*pupil.outcome(), task.name, REDUCTION)
    lesson = Lesson(
        task=task.name,
        accuracies=remembered(base, frozen.learned.adapter, tasks, journal),
        rank=max((d.rank for d in frozen.learned.blocks[-1].directions.values()), default=0),
        kept_energy=frozen.kept_energy,
        dropped=frozen.dropped,
        residuals=frozen.residuals,
        losses=tuple(losses),
        seconds=time.monotonic() - begin,
    )
    log.info("learned", task=task.name, accuracies=lesson.accuracies, rank=lesson.rank, dropped=len(lesson.dropped))
    return frozen.learned, lesson


def remembered(base: LoadedBase, adapter: LoraAdapter, tasks: Sequence[Task], journal: Journal) -> tuple[float, ...]:
    """Accuracy per task; nothing tells which task a prompt is from."""
    form = LikeliestChoice(tuple(sorted({c for task in tasks for c in task.splits.choices})))

    def accuracy(task: Task) -> float:
        examples = task.splits.gate[:_ROW_SAMPLES]
        answers = AnswerStream(Pair(base, adapter), examples, form).all()
        return sum(a == e.completion for a, e in zip(answers, examples, strict=True)) / len(examples)

    work = {f"accuracy on task {n}": partial(accuracy, task) for n, task in enumerate(tasks, 1)}
    return tuple(journal.once(step, _SHARE, ask) for step, ask in work.items())


def forgetting(lessons: Sequence[Lesson]) -> float:
    """What earlier tasks have lost against the best they ever were, on average (Chaudhry et al. 2018)."""
    last = len(lessons) - 1
    best = [max(lesson.accuracies[j] for lesson in lessons[j:last]) for j in range(last)]
    return sum(b - now for b, now in zip(best, lessons[-1].accuracies, strict=False)) / last if last else 0.0
