"""Recorded steps: one per shape of a step, whatever batch it was recorded with.

A ``StepShape`` is all that the launches of a step depend on besides what lies in static buffers. Steps in which every
row decodes one token are padded to a bucket, so that they have few shapes: two per bucket, with LoRA and without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch

from readapt_kernels.lora.work import Tiles
from readapt_runtime.model.accelerator import Compute

_SMALL = (1, 2, 4)
_STEP = 8


@dataclass(frozen=True, slots=True)
class StepShape:
    tokens: int
    """Rows that are computed, padding included."""
    decodes: bool
    prompts: bool
    tiles: Tiles | None
    """Of LoRA; None where no row has an adapter."""


@dataclass(frozen=True, slots=True)
class Buckets:
    """1, 2, 4, 8, 16, 24, … up to ``most`` tokens, which is one itself."""

    most: int

    @property
    def sizes(self) -> tuple[int, ...]:
        smaller = (size for size in (*_SMALL, *range(_STEP, self.most, _STEP)) if size < self.most)
        return (*smaller, self.most)

    def pad(self, tokens: int) -> int:
        """The smallest bucket that holds ``tokens``; unchanged beyond the largest."""
        return next((size for size in self.sizes if size >= tokens), tokens)

    def holds(self, shape: StepShape) -> bool:
        """Whether the step is one of those that are recorded."""
        return shape.decodes and not shape.prompts and shape.tokens <= self.most


class Replays:
    """Records a shape when it is first run, or ahead of time."""

    def __init__(self, compute: Callable[[StepShape], torch.Tensor], record: Callable[[Compute], Compute]) -> None:
        """``compute`` must read static buffers and its shape and nothing else."""
        self._compute, self._record = compute, record
        self._recorded: dict[StepShape, Compute] = {}

    @property
    def count(self) -> int:
        """Recorded steps."""
        return len(self._recorded)

    def run(self, shape: StepShape) -> torch.Tensor:
        self.prepare((shape,))
        return self._recorded[shape]()

    def prepare(self, shapes: Iterable[StepShape]) -> None:
        """Records what is not yet; the static buffers may be empty."""
        for shape in shapes:
            if shape not in self._recorded:
                self._recorded[shape] = self._record(partial(self._compute, shape))
