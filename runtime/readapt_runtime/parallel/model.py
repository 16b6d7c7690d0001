"""A decoder whose other shares are in worker processes: each step is told to them, then computed together."""

from __future__ import annotations

import torch

from readapt_runtime.engine.core import Batch
from readapt_runtime.engine.engine import Model
from readapt_runtime.parallel.crew import Crew
from readapt_runtime.parallel.steps import StepWriter


class ParallelModel:
    """See ``engine.Model``; rank 0."""

    def __init__(self, decoder: Model, crew: Crew) -> None:
        self._decoder, self._crew = decoder, crew
        self._writer = StepWriter()

    def forward(self, batch: Batch) -> torch.Tensor:
        """See ``engine.Model``; raises WorkerDied, and torch's RuntimeError from a collective that broke."""
        self._crew.tell(self._writer.write(batch))
        return self._decoder.forward(batch)

    def pick(self, batch: Batch, logits: torch.Tensor) -> torch.Tensor:
        """See ``engine.Model``; rank 0 alone has all logits."""
        return self._decoder.pick(batch, logits)
