"""Attention over the page pool: the protocol, and the backend in plain torch.

``plan`` sees the batch once per step, ``run`` is called per layer: it writes the step's keys and values into their
pages and returns what each token attends to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from readapt_runtime.engine.core import Batch, Row
from readapt_runtime.engine.pool import BLOCK_TOKENS, PagePool, kv_pages
from readapt_runtime.model.config import DecoderConfig


class AttentionBackend(Protocol):
    def plan(self, batch: Batch) -> None:
        """Prepares page tables and masks; valid until the next plan."""
        ...

    def run(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """q ``[tokens, heads, dim]``, k and v ``[tokens, kv heads, dim]`` -> ``[tokens, heads * dim]``; causal."""
        ...


@dataclass(frozen=True, slots=True)
class _Group:
    """Rows of one query length, attended together: all decode rows, or one stretch of a prompt."""

    tokens: torch.Tensor  # int64 [sequences * queries]: which tokens of the batch
    queries: int
    pages: torch.Tensor  # int64 [sequences * pages]
    visible: torch.Tensor  # bool [sequences, 1, group * queries, pages * block]


class TorchAttention:
    """Gathers pages and calls scaled_dot_product_attention: one gather per layer for all decode rows."""

    def __init__(self, config: DecoderConfig, pool: PagePool) -> None:
        self._pool = pool
        self._kv_heads = config.num_kv_heads
        # query heads that share a KV head are queries of one head here: no copy of K and V per query head
        self._group_size = config.num_heads // config.num_kv_heads
        self._head_dim = config.head_dim
        self._page_of = torch.empty(0)
        self._slot_of = torch.empty(0)
        self._groups: list[_Group] = []

    def plan(self, batch: Batch) -> None:
        device = batch.positions.device
        pages = [
            _pages(row)[at // BLOCK_TOKENS] for row in batch.rows for at in range(row.start, row.start + row.count)
        ]
        self._page_of = torch.tensor(pages, dtype=torch.int64, device=device)
        self._slot_of = batch.positions % BLOCK_TOKENS
        self._groups = [self._group(members, device) for members in _by_length(batch)]

    def _group(self, members: list[tuple[int, Row]], device: torch.device) -> _Group:
        queries = members[0][1].count
        width = max(kv_pages(row.start + row.count) for _, row in members)
        tables = [_padded(_pages(row), width) for _, row in members]
        starts = torch.tensor([row.start for _, row in members], device=device)
        last_seen = starts[:, None] + torch.arange(queries, device=device)  # [sequences, queries]
        context = torch.arange(width * BLOCK_TOKENS, device=device)
        visible = context[None, None, :] <= last_seen[:, :, None]  # [sequences, queries, context]
        return _Group(
            tokens=torch.tensor([first + i for first, _ in members for i in range(queries)], device=device),
            queries=queries,
            pages=torch.tensor([page for table in tables for page in table], device=device),
            visible=visible.repeat(1, self._group_size, 1).unsqueeze(1),
        )

    def run(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        kv = self._pool.kv(layer)
        kv[:, 0][self._page_of, self._slot_of] = k
        kv[:, 1][self._page_of, self._slot_of] = v
        if len(self._groups) == 1:
            return self._attend(self._groups[0], q, kv)
        out = torch.empty(q.shape[0], q.shape[1] * self._head_dim, dtype=q.dtype, device=q.device)
        for group in self._groups:
            out[group.tokens] = self._attend(group, q[group.tokens], kv)
        return out

    def _attend(self, group: _Group, q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        seqs, heads, size, dim = group.visible.shape[0], self._kv_heads, self._group_size, self._head_dim
        keys = kv[:, 0].index_select(0, group.pages).view(seqs, -1, heads, dim).transpose(1, 2)
        values = kv[:, 1].index_select(0, group.pages).view(seqs, -1, heads, dim).transpose(1, 2)
        # [seqs, queries, kv heads, group, dim] -> [seqs, kv heads, group * queries, dim]
        folded = q.view(seqs, group.queries, heads, size, dim).permute(0, 2, 3, 1, 4)
        folded = folded.reshape(seqs, heads, size * group.queries, dim)
        out = F.scaled_dot_product_attention(folded, keys, values, attn_mask=group.visible)
        out = out.view(seqs, heads, size, group.queries, dim).permute(0, 3, 1, 2, 4)
        return out.reshape(seqs * group.queries, heads * size * dim)


def _by_length(batch: Batch) -> list[list[tuple[int, Row]]]:
    """(first token, row) of the rows in groups: those with one query together, each longer one alone."""
    single: list[tuple[int, Row]] = []
    groups: list[list[tuple[int, Row]]] = []
    first = 0
    for row in batch.rows:
        if row.count == 1:
            single.append((first, row))
        else:
            groups.append([(first, row)])
        first += row.count
    return [*groups, single] if single else groups


def _pages(row: Row) -> tuple[int, ...]:
    if row.seq.kv is None:
        raise RuntimeError("a row of a sequence that was never admitted")
    return row.seq.kv.pages


def _padded(pages: tuple[int, ...], width: int) -> tuple[int, ...]:
    """The first ``width`` pages; short tables repeat the sequence's own first page, whose content is finite."""
    return pages[:width] + pages[:1] * (width - len(pages))
