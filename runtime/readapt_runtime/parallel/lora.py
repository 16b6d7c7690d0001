"""What a rank asks of the others: the sums of the base, and LoRA of fully sharded adapters beside that of the rest.

``x Aᵀ`` is computed in parts: by rank rows where outputs are shared out, so that the parts are gathered; by inputs
where these are shared out, so that they are summed. Then each rank adds what its part of B makes of the whole. For o
and down that is a stretch of the outputs, added to the rank's part of the base: the base's sum over the ranks brings
the stretches together, with no exchange of its own (S-LoRA, section 6.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from readapt_kernels.lora.reference import expand_, shrink
from readapt_runtime.engine.core import Batch, Segment
from readapt_runtime.engine.pool import PagePool
from readapt_runtime.model.adapter_image import LinearFactors
from readapt_runtime.model.config import Linear
from readapt_runtime.model.shard import COLUMN_PARALLEL
from readapt_runtime.parallel.group import Group


class Others:
    """See ``Exchange``; one collective per fused linear for all fully sharded adapters of a step."""

    def __init__(self, group: Group, pool: PagePool) -> None:
        self._group, self._pool = group, pool
        self._segments: Sequence[Segment] = ()

    def plan(self, batch: Batch) -> Batch:
        self._segments = [s for s in batch.segments if s.adapter.variant.image.fully_sharded]
        rest = tuple(s for s in batch.segments if not s.adapter.variant.image.fully_sharded)
        return replace(batch, segments=rest) if self._segments else batch

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        return self._group.sum(x)

    def join(self, logits: torch.Tensor) -> torch.Tensor:
        return self._group.join(logits)

    def add(self, layer: int, linear: Linear, x: torch.Tensor, y: torch.Tensor) -> None:
        found = [(s, s.adapter.variant.image.layers[layer].get(linear)) for s in self._segments]
        work = [_Work(s, f, self._pool.flat(s.adapter.entry, layer)) for s, f in found if f is not None]
        if not work:
            return
        flat = torch.cat([w.shrink(x).flatten() for w in work])
        parts = self._group.gather(flat) if linear in COLUMN_PARALLEL else self._group.sum(flat)[None]
        for w, part in zip(work, torch.split(parts, [w.size for w in work], dim=1), strict=True):
            w.expand_(y, part)


class _Work:
    """One adapter's rows in one fused linear."""

    def __init__(self, segment: Segment, factors: LinearFactors, flat: torch.Tensor) -> None:
        self._rows = slice(segment.start, segment.stop)
        self._tokens = segment.stop - segment.start
        self._factors, self._flat = factors, flat
        self.size = self._tokens * factors.rank

    def shrink(self, x: torch.Tensor) -> torch.Tensor:
        """The rank's part of the bridge ``[tokens, rank rows of its A]``."""
        f = self._factors
        return shrink(x[self._rows], self._flat[f.a_offset :][: f.rank * f.in_features].view(f.rank, f.in_features))

    def expand_(self, y: torch.Tensor, parts: torch.Tensor) -> None:
        """Adds to the rows of y; parts ``[ranks gathered, tokens * rank]``."""
        bridges = parts.view(len(parts), self._tokens, self._factors.rank)
        for s in self._factors.slices:
            own = bridges[:, :, s.rank_start : s.rank_start + s.rank].transpose(0, 1).flatten(1)
            b_t = self._flat[s.b_offset :][: own.shape[1] * s.out_size].view(own.shape[1], s.out_size)
            expand_(y[self._rows, s.out_start : s.out_start + s.out_size], own, b_t, s.scale)
