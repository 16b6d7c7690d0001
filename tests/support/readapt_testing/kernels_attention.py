"""Batches for attention tests: dense keys and values, the same in pages, and dense fp64 attention over them."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from readapt_kernels.attention.operands import Sequences
from readapt_testing.triton_modes import DEVICE

PAGE_TOKENS = 16
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3}
STALE = 999_999
"""What a larger batch before may have left in the metadata: reading it would leave every buffer."""


@dataclass(frozen=True, slots=True)
class Heads:
    """Query heads per KV head, KV heads, head size."""

    group: int
    kv: int
    dim: int


@dataclass(frozen=True, slots=True)
class Case:
    """Operands of one launch, and the dense keys and values that went into the pages."""

    q: torch.Tensor  # [tokens, heads, dim]
    kv: torch.Tensor  # [pages, 2, page tokens, kv heads, dim], NaN where nothing was written
    seqs: Sequences
    keys: list[torch.Tensor]  # per sequence [context, kv heads, dim]
    values: list[torch.Tensor]
    scale: float

    def blank(self) -> torch.Tensor:
        """An output that nothing was written to."""
        return torch.full_like(self.q, float("nan"))

    def expected(self) -> torch.Tensor:
        """Dense attention in fp64; NaN at rows of no sequence, zeros where there is no context."""
        out = torch.full(self.q.shape, float("nan"), dtype=torch.float64)
        for s, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            start, new, context = int(self.seqs.query_starts[s]), int(self.seqs.query_lens[s]), keys.shape[0]
            if context == 0:
                out[start : start + new] = 0.0
                continue
            visible = torch.ones(new, context, dtype=torch.bool).tril(context - new)
            q, k, v = (t.double().cpu().transpose(0, 1) for t in (self.q[start : start + new], keys, values))
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=self.scale, enable_gqa=True)
            out[start : start + new] = attended.transpose(0, 1)
        return out

    def assert_close(self, out: torch.Tensor) -> None:
        """Row by row relative to the row's norm; rows of no sequence are untouched."""
        expected = self.expected()
        untouched = expected.isnan()
        assert torch.equal(out.cpu().isnan(), untouched)
        error = (out.double().cpu() - expected).nan_to_num().norm(dim=-1)
        size = expected.nan_to_num().norm(dim=-1)
        assert bool((error <= TOLERANCE[self.q.dtype] * size).all()), f"relative error {(error / size).max():.1e}"


def make_case(
    heads: Heads,
    contexts: Many[int],
    new: Many[int] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    page_seed: int = 0,
    max_seqs: int = 8,
) -> Case:
    """``contexts`` are keys per sequence, new tokens included; ``new`` is 1 each unless told.

    ``seed`` chooses numbers, ``page_seed`` which pages hold them. Free pages and what is beyond a context are NaN,
    metadata behind the last sequence is stale, and rows of q belong to sequences out of order with one row between
    them.
    """
    random = torch.Generator().manual_seed(seed)
    new = new or [1] * len(contexts)
    keys, values = ([_normal(random, n, heads.kv, heads.dim, dtype) for n in contexts] for _ in range(2))
    wide = max(1, max(-(-n // PAGE_TOKENS) for n in contexts))
    order = torch.randperm(wide * len(contexts) + 3, generator=torch.Generator().manual_seed(page_seed))
    kv = torch.full((len(order), 2, PAGE_TOKENS, heads.kv, heads.dim), float("nan"), dtype=dtype)
    table = torch.full((max_seqs, wide), STALE, dtype=torch.int32)
    lens = torch.full((max_seqs,), STALE, dtype=torch.int32)
    starts, news = lens.clone(), lens.clone()
    tokens = 1
    for s in reversed(range(len(contexts))):
        starts[s], news[s], lens[s] = tokens, new[s], contexts[s]
        tokens += new[s] + 1
        for i in range(-(-contexts[s] // PAGE_TOKENS)):
            page = int(order[s * wide + i])
            held = slice(i * PAGE_TOKENS, min((i + 1) * PAGE_TOKENS, contexts[s]))
            kv[page, 0, : held.stop - held.start] = keys[s][held]
            kv[page, 1, : held.stop - held.start] = values[s][held]
            table[s, i] = page
    buffers = [torch.tensor([len(contexts)], dtype=torch.int32), starts, news, lens, table]
    seqs = Sequences(*(b.to(DEVICE) for b in buffers))
    q = _normal(random, tokens, heads.group * heads.kv, heads.dim, dtype)
    return Case(q.to(DEVICE), kv.to(DEVICE), seqs, keys, values, scale=heads.dim**-0.5)


def only(case: Case, sequence: int) -> Case:
    """One sequence of the case alone, with the same queries and pages."""
    s = slice(sequence, sequence + 1)
    seqs = case.seqs
    one = Sequences(
        torch.ones_like(seqs.count),
        seqs.query_starts[s],
        seqs.query_lens[s],
        seqs.context_lens[s],
        seqs.page_table[s],
    )
    return replace(case, seqs=one, keys=case.keys[s], values=case.values[s])


def copied_into(larger: Case, smaller: Case) -> Case:
    """The smaller case in the larger one's metadata buffers; what it does not fill keeps its old content."""
    count = len(smaller.keys)
    old, new = larger.seqs, smaller.seqs
    old.count.copy_(new.count)
    for into, what in ((old.query_starts, new.query_starts), (old.query_lens, new.query_lens)):
        into[:count] = what[:count]
    old.context_lens[:count] = new.context_lens[:count]
    old.page_table[:count, : new.page_table.shape[1]] = new.page_table[:count]
    return replace(smaller, seqs=old)


def _normal(random: torch.Generator, tokens: int, heads: int, dim: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(tokens, heads, dim, generator=random, dtype=torch.float64).to(dtype)
