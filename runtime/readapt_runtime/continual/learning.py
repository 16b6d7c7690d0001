"""Learns one task: the newest factors and the magnitudes of all earlier directions, by gradient descent.

Hung beside the frozen base are the earlier directions (their factors fixed, their magnitudes learned) and an ordinary
LoRA of the new task. Magnitudes are learned as gains relative to where they were, so that one learning rate fits all
sizes; the newest one is part of the factors' product until the task is frozen. At the start of a task the new product
is zero and all gains are 1: the function is that of the end of the last task.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from readapt_runtime.adapt.base import LoadedBase
from readapt_runtime.adapt.errors import Diverged
from readapt_runtime.adapt.factors import SideFactors, attached
from readapt_runtime.adapt.journal import Journal
from readapt_runtime.adapt.training import Descent, Group, Pace, Saved, leaves_of, snapshot, trainable
from readapt_runtime.adapt.tuning import shuffled_batches
from readapt_runtime.continual.blocks import Learned
from readapt_runtime.lora_format import LoraAdapter

Loss = Callable[[Sequence[int]], Tensor]
"""Indices of a batch's examples -> the scalar to be descended, for whatever is attached to the base now."""
_STATE = "learning"


@dataclass(frozen=True, slots=True)
class Course:
    """How a task is learned."""

    max_steps: int
    learning_rate: float
    """Of the factors."""
    batch_size: int
    seed: int
    gain_rate: float = 1e-2
    """Learning rate of the magnitudes, relative to their size."""
    warmup_share: float = 0.05
    clip: float = 1.0

    @property
    def pace(self) -> Pace:
        return Pace(math.ceil(self.warmup_share * self.max_steps), self.max_steps, self.clip)


class Pupil:
    """What is being learned, on the base that it is learned on."""

    def __init__(self, base: LoadedBase, learned: Learned, start: LoraAdapter, seed: int) -> None:
        """``start``: the new task's LoRA; rows and columns that are both zero get a random A (``trainable``)."""
        self._base = base
        self._learned = learned
        self._start = start
        self.current = trainable(start, base, seed)
        self.gains = {
            name: torch.ones(len(learned.holding(name)), device=base.device, requires_grad=True)
            for name in learned.modules
        }
        self._directions = {name: _Directions.of(learned, name, base) for name in learned.modules}

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Beside the base within the block, with gradient to factors and gains."""
        earlier = {name: self._directions[name].times(gain) for name, gain in self.gains.items()}
        with attached(self._base.model, earlier), attached(self._base.model, self.current):
            yield

    def outcome(self) -> tuple[Learned, LoraAdapter]:
        """The earlier blocks with their new magnitudes, and the new task's factors."""
        magnitudes = {
            name: [b.magnitudes[name] * g for b, g in zip(self._learned.holding(name), gain.tolist(), strict=True)]
            for name, gain in self.gains.items()
        }
        return self._learned.with_magnitudes(magnitudes), snapshot(self.current, self._start)

    def groups(self, course: Course) -> tuple[Group, Group]:
        """What is learned: factors and gains."""
        gains = {f"{name}.gain": gain for name, gain in self.gains.items()}
        return Group(leaves_of(self.current), course.learning_rate), Group(gains, course.gain_rate)


@dataclass(frozen=True, slots=True)
class _Directions:
    """The earlier directions of one module, side by side in the base's dtype, on its device."""

    a: Tensor  # [Σ ranks, in]
    b: Tensor  # [out, Σ ranks]
    magnitudes: Tensor  # [blocks]
    ranks: Tensor  # [blocks]

    @classmethod
    def of(cls, learned: Learned, name: str, base: LoadedBase) -> _Directions:
        blocks = learned.holding(name)
        directions = [block.directions[name] for block in blocks]
        return cls(
            torch.cat([d.right for d in directions]).to(base.device, base.dtype),
            torch.cat([d.left for d in directions], dim=1).to(base.device, base.dtype),
            torch.tensor([block.magnitudes[name] for block in blocks], device=base.device),
            torch.tensor([d.rank for d in directions], device=base.device),
        )

    def times(self, gains: Tensor) -> SideFactors:
        scale = (self.magnitudes * gains).repeat_interleave(self.ranks, output_size=len(self.a))
        return SideFactors(self.a, self.b, scale)


def descend(
    pupil: Pupil, loss: Loss, lengths: Sequence[int], course: Course, journal: Journal | None = None
) -> Iterator[float]:
    """The loss of one optimiser step after the other; ``lengths`` of the examples, for batches of little padding.

    With ``journal`` it goes on where an earlier run was, whose losses come first, and leaves what a later one needs;
    ``loss`` has to be that of a pupil that has not taken a step. Raises Diverged when a loss is not finite.
    """
    losses, descent = _open(pupil, course, journal)
    yield from losses
    order = shuffled_batches(lengths, course.batch_size, course.seed)
    for step, batch in islice(enumerate(order), len(losses), course.max_steps):
        with pupil.attached():
            found = loss(batch)
        if not bool(torch.isfinite(found)):
            raise Diverged(f"the training loss at step {step + 1} is {found.item()}; try a smaller learning rate")
        descent.step(found)
        losses.append(float(found.detach()))
        if journal is not None and (journal.due() or len(losses) == course.max_steps):
            journal.save(_STATE, None, {**descent.tensors(), "losses": torch.tensor(losses)})
        yield losses[-1]


def _open(pupil: Pupil, course: Course, journal: Journal | None) -> tuple[list[float], Descent]:
    """Where an earlier run was, or the beginning."""

    def restore(_: object, tensors: Mapping[str, Tensor]) -> tuple[list[float], Descent]:
        losses: list[float] = tensors["losses"].tolist()
        return losses, Descent(pupil.groups(course), course.pace, Saved(len(losses), tensors))

    found = None if journal is None else journal.load(_STATE, restore)
    return found or ([], Descent(pupil.groups(course), course.pace))
