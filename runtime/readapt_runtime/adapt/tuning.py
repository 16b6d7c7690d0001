"""Anchored fine-tuning of an adapter from a starting point that is nearly right.

    loss = mean nats per answer token + μ · mean nats per token of replay text + λ(t) · anchor(t)

λ is strong at first and weak after a quarter of the steps (ReLoRA, arXiv 2606.02606, stage 2), the learning rate warms
up and falls with a cosine. The replay text is what the new base itself writes: task examples alone teach the adapter
to answer with labels to everything (measured on a 135M model: retention fell from 0.24 to -0.17 within 50 steps).

Evaluations are dense at first and get rarer, because how many steps a repair takes varies by orders of magnitude.
Tuning stops when one is clearly as good as the old pair or two in a row are, or when it no longer gets better, which is
not judged before half of the steps: a good start often gets worse first. The best checkpoint that keeps the retention
floor is the result. Seeded throughout: on one machine with one number of threads
equal inputs give equal bytes. Batches, replay text and learning rate follow from the seed and the step, so that a run
that goes on from a journal ends with the same bytes too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice

import torch
from pydantic import TypeAdapter
from torch import Tensor

from readapt_api.digest import digest_of, hex_of
from readapt_runtime.adapt.base import LoadedBase
from readapt_runtime.adapt.errors import Diverged
from readapt_runtime.adapt.factors import attached
from readapt_runtime.adapt.journal import Journal
from readapt_runtime.adapt.retention import Retention, text_loss
from readapt_runtime.adapt.tokens import Encoded, answer_losses
from readapt_runtime.adapt.training import Pace, Saved, Training
from readapt_runtime.lora_format import LoraAdapter, LoraModule

_TELLING_SHARE = 0.3
"""Of its steps after which a tuning may be behind a rival: before, learning what answers look like decides."""
_CHUNK_BATCHES = 8
"""Batches are cut by length within chunks of this many, then shuffled: little padding, still random."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """How to tune."""

    max_steps: int
    learning_rate: float
    batch_size: int
    seed: int
    evaluations: int = 6
    """After all steps, after three quarters, a half, a quarter of them, an eighth and so on: so many of these."""
    patience: int = 3
    """Evaluations without a better one before it stops, from half of the steps on."""
    replay: float = 0.1
    """μ; 0 without a constraint on retention."""
    replay_rows: int = 2
    """Sequences of replay text per step."""
    strong: float = 1.0
    weak: float = 0.1
    strong_share: float = 0.25
    warmup_share: float = 0.05
    clip: float = 1.0

    def anchor_weight(self, step: int) -> float:
        return self.strong if step < self.strong_share * self.max_steps else self.weak

    @property
    def pace(self) -> Pace:
        warmup = math.ceil(self.warmup_share * self.max_steps)
        return Pace(warmup, self.max_steps, self.clip)

    def evaluates(self, step: int) -> bool:
        """Whether the weights after ``step`` steps are evaluated."""
        shares = (1.0, 0.75, *(0.5**n for n in range(1, self.evaluations)))
        return step in {math.ceil(share * self.max_steps) for share in shares[: self.evaluations]}


_EVENLY = 10


@dataclass(frozen=True, slots=True)
class Evenly(Tuning):
    """A repair is evaluated early, because it may be ready soon; what starts from nothing gets better until late."""

    patience: int = 5
    """At first a new adapter learns what answers look like, which no accuracy shows."""

    def evaluates(self, step: int) -> bool:
        return step % math.ceil(self.max_steps / _EVENLY) == 0 or step == self.max_steps


@dataclass(frozen=True, slots=True)
class Lessons:
    """What is learned from."""

    examples: Sequence[Encoded]
    replay: Sequence[Sequence[int]] = ()
    """Token ids, sequences of equal length."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One checkpoint on the stopping examples."""

    step: int
    score: float
    """By the metric of the gate; larger is better."""
    retention: Retention | None
    """None where it was not measured: the checkpoint is no candidate, or there is no yardstick."""
    feasible: bool
    """It may be kept: retention is at or above its floor, or there is none."""
    ready: bool
    """As good as the old pair on the same examples, and feasible."""
    clear: bool = False
    """Ready, and better than the old pair by more than a standard error: needs no second look."""

    @property
    def order(self) -> tuple[bool, float]:
        """Larger is better: feasible first, then the score; of equal ones the earlier stays, nearer to the start."""
        return self.feasible, self.score


_CURVE = TypeAdapter(list[Evaluation])


@dataclass(frozen=True, slots=True)
class Tuned:
    """The best checkpoint and how tuning went."""

    adapter: LoraAdapter
    best: Evaluation
    curve: tuple[Evaluation, ...]
    train_losses: tuple[float, ...]


@dataclass(slots=True)
class _Course:
    """A tuning between two steps: all that the next one, in this run or in a later one, depends on."""

    name: str
    """Of this start, these lessons and settings."""
    settings: Tuning
    training: Training
    curve: list[Evaluation]
    losses: list[float]
    kept: LoraAdapter
    """As it was at the best evaluation."""
    rival: Sequence[Evaluation] = ()
    """The curve of a tuning that it has to keep up with."""

    @property
    def best(self) -> Evaluation:
        return max(self.curve, key=lambda seen: seen.order)

    @property
    def finished(self) -> bool:
        clear = len(self.curve) > 1 and self.curve[-1].clear
        ready_twice = len(self.curve) > 2 and self.curve[-1].ready and self.curve[-2].ready
        return clear or ready_twice or self.is_stuck or self.is_behind or len(self.losses) >= self.settings.max_steps

    @property
    def is_stuck(self) -> bool:
        """Nothing has become better for a while, nor does it look like it.

        Measured on a 135M model (accuracy at 0, 8, 15 and 30 of 120 steps): 60.9, 50.0, 58.1, 60.3 %.
        """
        waited = len(self.curve) - 1 - self.curve.index(self.best) >= self.settings.patience
        rises = len(self.curve) > 1 and self.curve[-1].score > self.curve[-2].score
        return waited and not rises and 2 * len(self.losses) >= self.settings.max_steps

    @property
    def is_behind(self) -> bool:
        """The rival was better after as many steps, once these are enough to tell."""
        last = self.curve[-1]
        enough = last.step >= _TELLING_SHARE * self.settings.max_steps
        return enough and any(seen.step == last.step and seen.score > last.score for seen in self.rival)

    def see(self, evaluation: Evaluation, adapter: LoraAdapter) -> None:
        self.curve.append(evaluation)
        if self.best is evaluation:
            self.kept = adapter

    def state(self) -> tuple[object, dict[str, Tensor]]:
        """What goes into the journal. The kept adapter is left out where it is the start or the present one."""
        tensors = self.training.tensors()
        if self.best.step not in (0, len(self.losses)):
            tensors |= {f"kept.{name}.a": module.a for name, module in self.kept.modules.items()}
            tensors |= {f"kept.{name}.b": module.b for name, module in self.kept.modules.items()}
        tensors["losses"] = torch.tensor(self.losses)
        return _CURVE.dump_python(self.curve), tensors


Evaluate = Callable[[int, LoraAdapter, Sequence[Evaluation]], Evaluation]
"""Evaluates the adapter after so many steps, knowing the evaluations before it."""


def tune(
    base: LoadedBase,
    start: LoraAdapter,
    first: Evaluation,
    lessons: Lessons,
    settings: Tuning,
    evaluate: Evaluate,
    journal: Journal | None = None,
    rival: Sequence[Evaluation] = (),
) -> Tuned:
    """Tunes ``start`` on ``lessons``; ``first`` is its evaluation at step 0, ``evaluate`` makes the later ones.

    It is given up when it falls behind ``rival``, the curve of another tuning. With ``journal`` it goes on where an
    earlier run was, and leaves what a later one needs. Raises Diverged when the training loss is not finite.
    """
    course = _open(journal, base, start, first, lessons, settings)
    course.rival = rival
    losses = _steps(base, course.training, lessons, settings, done=len(course.losses))
    while not course.finished:
        course.losses.append(next(losses))
        step = len(course.losses)
        if settings.evaluates(step):
            adapter = course.training.adapter()
            course.see(evaluate(step, adapter, course.curve), adapter)
        if journal is not None and (settings.evaluates(step) or journal.due()):
            journal.save(course.name, *course.state())
    return Tuned(course.kept, course.best, tuple(course.curve), tuple(course.losses))


def _steps(base: LoadedBase, training: Training, lessons: Lessons, settings: Tuning, done: int) -> Iterator[float]:
    """The answer loss of one optimiser step after the other, ``done`` of which were taken before."""
    order = shuffled_batches([len(r.ids) for r in lessons.examples], settings.batch_size, settings.seed)
    for step, batch in islice(enumerate(order), done, settings.max_steps):
        with attached(base.model, training.factors):
            answer = answer_losses(base, [lessons.examples[i] for i in batch]).mean()
            replayed = settings.replay * _replay(base, lessons.replay, settings, step)
        loss: Tensor = answer + replayed + settings.anchor_weight(step) * training.anchor()
        if not bool(torch.isfinite(loss)):
            raise Diverged(f"the training loss at step {step + 1} is {loss.item()}; try a smaller learningRate")
        training.step(loss)
        yield float(answer.detach())


def _open(
    journal: Journal | None,
    base: LoadedBase,
    start: LoraAdapter,
    first: Evaluation,
    lessons: Lessons,
    settings: Tuning,
) -> _Course:
    """Where an earlier run was, or the beginning."""
    work = {"settings": asdict(settings), "examples": [asdict(e) for e in lessons.examples], "replay": lessons.replay}
    name = f"tuning-{hex_of(digest_of({**work, 'start': start.fingerprint}))[:16]}"

    def restore(document: object, tensors: Mapping[str, Tensor]) -> _Course:
        losses = tensors["losses"].tolist()
        saved = Saved(len(losses), tensors)
        training = Training(start, base, settings.learning_rate, settings.pace, settings.seed, saved)
        course = _Course(name, settings, training, _CURVE.validate_python(document), losses, start)
        if course.best.step == len(losses):
            course.kept = training.adapter()
        elif course.best.step > 0:
            course.kept = _kept(start, tensors)
        return course

    found = None if journal is None else journal.load(name, restore)
    if found is not None:
        return found
    training = Training(start, base, settings.learning_rate, settings.pace, settings.seed)
    return _Course(name, settings, training, [first], [], start)


def _kept(start: LoraAdapter, tensors: Mapping[str, Tensor]) -> LoraAdapter:
    return LoraAdapter(
        {
            name: LoraModule(name, tensors[f"kept.{name}.a"].clone(), tensors[f"kept.{name}.b"].clone(), module.scale)
            for name, module in start.modules.items()
        }
    )


def _replay(base: LoadedBase, text: Sequence[Sequence[int]], settings: Tuning, step: int) -> Tensor:
    """The loss on the next sequences of the text, round and round."""
    if not text or settings.replay == 0:
        return torch.zeros(())
    begin = step * settings.replay_rows
    return text_loss(base, [text[(begin + i) % len(text)] for i in range(settings.replay_rows)]).mean()


def shuffled_batches(lengths: Sequence[int], size: int, seed: int) -> Iterator[list[int]]:
    """Index batches without end, a new order in every epoch."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order: list[int] = torch.randperm(len(lengths), generator=generator).tolist()
        for begin in range(0, len(order), size * _CHUNK_BATCHES):
            chunk = sorted(order[begin : begin + size * _CHUNK_BATCHES], key=lambda i: (lengths[i], i))
            starts = torch.randperm(math.ceil(len(chunk) / size), generator=generator).tolist()
            yield from (chunk[i * size : (i + 1) * size] for i in starts)
