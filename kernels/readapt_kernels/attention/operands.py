"""What both attention kernels take: which tokens and pages belong to which sequence, and the checks of shapes."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Sequences:
    """The sequences of one launch, in static buffers that a captured graph reads again on every replay.

    Only the first ``count`` entries mean anything; what an earlier, larger batch left behind them is never read.
    """

    # filled by the backend's plan, once per step
    count: torch.Tensor  # int32 [1]
    query_starts: torch.Tensor  # int32 [max sequences]: row of the sequence's first new token in q and out
    query_lens: torch.Tensor  # int32 [max sequences]: new tokens; decode takes them as 1 and does not read this
    context_lens: torch.Tensor  # int32 [max sequences]: keys in the pages, those of the new tokens included
    page_table: torch.Tensor  # int32 [max sequences, max pages]

    def __post_init__(self) -> None:
        per_sequence = (self.query_starts, self.query_lens, self.context_lens)
        buffers = (self.count, *per_sequence, self.page_table)
        if any(b.dtype != torch.int32 for b in buffers):
            raise ValueError("the buffers that describe sequences are int32")
        if self.count.numel() != 1 or self.page_table.dim() != 2:
            raise ValueError("count is [1] and the page table [max sequences, max pages]")
        if any(b.shape != (self.max_seqs,) for b in per_sequence):
            raise ValueError(f"buffers per sequence are not all [{self.max_seqs}], the height of the page table")
        if any(b.stride(-1) != 1 for b in (*per_sequence, self.page_table)):
            raise ValueError("the buffers that describe sequences must be contiguous along their last axis")
        if len({b.device for b in buffers}) != 1:
            raise ValueError("the buffers that describe sequences lie on different devices")

    @property
    def max_seqs(self) -> int:
        return self.page_table.shape[0]


@dataclass(frozen=True, slots=True)
class HeadShape:
    """Query heads, KV heads and the size of a head: what kernels are compiled for."""

    heads: int
    kv_heads: int
    dim: int

    def __post_init__(self) -> None:
        if min(self.heads, self.kv_heads, self.dim) < 1 or self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} query heads cannot share {self.kv_heads} KV heads of {self.dim}")

    @property
    def group(self) -> int:
        """Query heads that share a KV head."""
        return self.heads // self.kv_heads


def head_shape(q: torch.Tensor, kv: torch.Tensor, out: torch.Tensor, seqs: Sequences) -> HeadShape:
    """Checks q and out ``[tokens, heads, dim]`` against kv ``[pages, 2, page tokens, kv heads, dim]``."""
    if q.dim() != 3 or out.shape != q.shape:
        raise ValueError(f"q {_look(q)} and out {_look(out)} are not both [tokens, heads, dim]")
    if kv.dim() != 5 or kv.shape[1] != 2 or kv.shape[4] != q.shape[2]:
        raise ValueError(f"pages {_look(kv)} are not [pages, 2, page tokens, kv heads, dim] for queries {_look(q)}")
    if q.dtype != kv.dtype or out.dtype != kv.dtype:
        raise ValueError(f"q {_look(q)}, out {_look(out)} and pages {_look(kv)} differ in dtype")
    if q.stride(-1) != 1 or out.stride(-1) != 1 or kv.stride(-1) != 1:
        raise ValueError("the elements of a head must be neighbours in q, out and pages")
    if len({t.device for t in (q, kv, out, seqs.count)}) != 1:
        raise ValueError("operands of attention lie on different devices")
    return HeadShape(q.shape[1], kv.shape[3], q.shape[2])


def _look(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
