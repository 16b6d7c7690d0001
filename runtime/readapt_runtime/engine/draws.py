"""What the random rows of a step are drawn with, settled on the host before the step is computed.

In: the sequences of the sampled rows. Out: one uniform number per random row, from the request's own generator, so that
its draws depend neither on who shares the batch nor on what computes the step. ``sampler`` picks tokens with it.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from readapt_runtime.engine.core import Sequence

GREEDY_BELOW = 1e-5
"""Temperatures below it are greedy."""


@dataclass(frozen=True, slots=True)
class Draws:
    """All tensors ``[random rows]``, those with a top_p below 1 first; what is not among ``rows`` is greedy."""

    num_cut: int  # how many have a top_p below 1
    rows: torch.Tensor  # int: which of the sampled rows
    temperature: torch.Tensor  # float32
    top_p: torch.Tensor  # float32
    point: torch.Tensor  # float32 in [0, 1)

    @classmethod
    def of(cls, seqs: Rows[Sequence]) -> Draws:
        """Takes the next number of every random sequence: once for each of its tokens."""
        random = [(i, seq) for i, seq in enumerate(seqs) if seq.request.sampling.temperature >= GREEDY_BELOW]
        random.sort(key=lambda row: row[1].request.sampling.top_p >= 1.0)
        params = [seq.request.sampling for _, seq in random]
        return cls(
            num_cut=sum(p.top_p < 1.0 for p in params),
            rows=torch.tensor([i for i, _ in random], dtype=torch.int64),
            temperature=torch.tensor([p.temperature for p in params], dtype=torch.float32),
            top_p=torch.tensor([p.top_p for p in params], dtype=torch.float32),
            point=torch.tensor([_uniform(seq) for _, seq in random], dtype=torch.float32),
        )

    def on(self, device: torch.device) -> Draws:
        """The same, there."""
        if device == self.rows.device:
            return self
        fields = (self.rows, self.temperature, self.top_p, self.point)
        return Draws(self.num_cut, *(field.to(device) for field in fields))


def _uniform(seq: Sequence) -> float:
    if seq.generator is None:
        seq.generator = torch.Generator()
        seed = seq.request.sampling.seed
        if seed is None:
            seq.generator.seed()
        else:
            seq.generator.manual_seed(seed)
    return float(torch.rand((), generator=seq.generator))
