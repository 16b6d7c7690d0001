"""Attention over the page pool: the protocols, and the backend in plain torch.

Where each batch is planned anew ``plan`` sees it once per step. ``run`` is called per layer: it rotates the step's
queries and keys, writes keys and values into their pages and returns what each token attends to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from readapt_runtime.engine.core import Batch, Row
from readapt_runtime.engine.pool import BLOCK_TOKENS, PagePool, kv_pages
from readapt_runtime.model.config import DecoderConfig
from readapt_runtime.model.rotary import rotate


@dataclass(frozen=True, slots=True)
class QkNorm:
    """Weights of the norms over single heads of queries and keys, ``[head dim]`` each (Qwen3)."""

    q: torch.Tensor
    k: torch.Tensor


PlacedRow = tuple[int, Row]
"""A row, and which token of the batch is its first."""


class LayerAttention(Protocol):
    def run(self, layer: int, qkv: torch.Tensor, norm: QkNorm | None) -> torch.Tensor:
        """qkv ``[tokens, (heads + 2 kv heads) * dim]``, overwritten -> ``[tokens, heads * dim]``; causal."""
        ...


class AttentionBackend(LayerAttention, Protocol):
    def plan(self, batch: Batch) -> None:
        """Prepares page tables and masks; valid until the next plan."""
        ...


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A row of several queries."""

    rows: slice  # tokens of the batch
    context: int  # tokens, those of the row included
    pages: torch.Tensor | None  # int64 [pages of the context]; None when the row begins the sequence
    visible: torch.Tensor | None  # bool [queries, context]


class PromptAttention:
    """Rows of several queries, each by one scaled_dot_product_attention; a row without a past reads no page."""

    def __init__(self, config: DecoderConfig, pool: PagePool) -> None:
        self._pool = pool
        self._heads, self._kv_heads, self._dim = config.num_heads, config.num_kv_heads, config.head_dim
        self._prompts: list[_Prompt] = []

    def plan(self, prompts: Sequence[PlacedRow]) -> None:
        device = self._pool.device
        self._prompts = [_prompt(first, row, device) for first, row in prompts]

    def run(self, layer: int, qkv: torch.Tensor, out: torch.Tensor) -> None:
        """Fills the rows' part of out ``[tokens, heads * dim]``; queries and keys of qkv are rotated already."""
        for prompt in self._prompts:
            heads = qkv[prompt.rows].view(-1, self._heads + 2 * self._kv_heads, self._dim).transpose(0, 1)
            q, k, v = torch.split(heads, [self._heads, self._kv_heads, self._kv_heads])
            if prompt.pages is not None:
                k, v = (side[prompt.pages].flatten(0, 1)[: prompt.context] for side in self._pool.kv(layer))
                k, v = k.transpose(0, 1), v.transpose(0, 1)
            causal = prompt.visible is None
            mixed = F.scaled_dot_product_attention(
                q[None], k[None], v[None], attn_mask=prompt.visible, is_causal=causal, enable_gqa=True
            )
            out[prompt.rows] = mixed[0].transpose(0, 1).reshape(-1, self._heads * self._dim)


def _prompt(first: int, row: Row, device: torch.device) -> _Prompt:
    rows = slice(first, first + row.count)
    end = row.start + row.count
    if row.start == 0:
        return _Prompt(rows, end, None, None)
    pages = torch.tensor(pages_of(row)[: kv_pages(end)], device=device)
    last_seen = torch.arange(row.start, end, device=device)
    visible = torch.arange(end, device=device)[None, :] <= last_seen[:, None]
    return _Prompt(rows, end, pages, visible)


Angles = tuple[torch.Tensor, torch.Tensor]
"""cos and sin of each token's position, ``[tokens, 1, head dim]`` each."""


class Rotation:
    """Norms and rotates queries and keys in plain torch, where no kernel does."""

    def __init__(self, config: DecoderConfig, tables: tuple[torch.Tensor, torch.Tensor]) -> None:
        self._split = [config.num_heads, config.num_kv_heads, config.num_kv_heads]
        self._dim, self._eps = config.head_dim, config.rms_norm_eps
        self._rotates = config.rotary_layers
        self._cos, self._sin = tables

    def angles(self, positions: torch.Tensor) -> Angles:
        """Positions int ``[tokens]``."""
        return self._cos.index_select(0, positions).unsqueeze(1), self._sin.index_select(0, positions).unsqueeze(1)

    def run(
        self, layer: int, qkv: torch.Tensor, norm: QkNorm | None, angles: Angles
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values ``[tokens, heads, dim]`` as views of qkv, changed in place."""
        q, k, v = torch.split(qkv.view(qkv.shape[0], -1, self._dim), self._split, dim=1)
        if norm is not None:
            q.copy_(F.rms_norm(q, norm.q.shape, norm.q, self._eps))
            k.copy_(F.rms_norm(k, norm.k.shape, norm.k, self._eps))
        if self._rotates[layer]:
            q.copy_(rotate(q, *angles))
            k.copy_(rotate(k, *angles))
        return q, k, v


class TorchAttention:
    """Decode rows together: one gather of their pages and one scaled_dot_product_attention per layer."""

    def __init__(self, config: DecoderConfig, pool: PagePool, tables: tuple[torch.Tensor, torch.Tensor]) -> None:
        self._pool = pool
        self._kv_heads = config.num_kv_heads
        # query heads that share a KV head are queries of one head here: no copy of K and V per query head
        self._group_size = config.num_heads // config.num_kv_heads
        self._head_dim = config.head_dim
        self._rotation = Rotation(config, tables)
        self._angles: Angles = (torch.empty(0), torch.empty(0))
        self._prompts = PromptAttention(config, pool)
        self._page_of = self._slot_of = torch.empty(0)
        self._tokens = self._pages = self._visible = torch.empty(0)

    def plan(self, batch: Batch) -> None:
        self._angles = self._rotation.angles(batch.positions)
        self._page_of = page_of_tokens(batch)
        self._slot_of = batch.positions % BLOCK_TOKENS
        decode, prompts = by_kind(batch)
        self._prompts.plan(prompts)
        device = self._pool.device
        self._tokens = torch.tensor([first for first, _ in decode], dtype=torch.int64, device=device)
        width = max((kv_pages(row.start + 1) for _, row in decode), default=0)
        tables = [_padded(pages_of(row), width) for _, row in decode]
        self._pages = torch.tensor([page for table in tables for page in table], dtype=torch.int64, device=device)
        context = torch.arange(width * BLOCK_TOKENS, device=device)
        self._visible = (context[None, :] <= batch.positions[self._tokens][:, None])[:, None, None, :]

    def run(self, layer: int, qkv: torch.Tensor, norm: QkNorm | None) -> torch.Tensor:
        q, k, v = self._rotation.run(layer, qkv, norm, self._angles)
        keys, values = self._pool.kv(layer)
        keys[self._page_of, self._slot_of] = k
        values[self._page_of, self._slot_of] = v
        out = torch.empty(qkv.shape[0], q.shape[1] * q.shape[2], dtype=qkv.dtype, device=qkv.device)
        if len(self._tokens):
            out[self._tokens] = self._decode(q[self._tokens], keys, values)
        self._prompts.run(layer, qkv, out)
        return out

    def _decode(self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        seqs, heads, size, dim = q.shape[0], self._kv_heads, self._group_size, self._head_dim
        keys, values = (
            side.index_select(0, self._pages).view(seqs, -1, heads, dim).transpose(1, 2) for side in (keys, values)
        )
        # what a block held before may be anything, and a masked NaN is still a NaN
        keys, values = (side.masked_fill(~self._visible.transpose(2, 3), 0) for side in (keys, values))
        folded = q.view(seqs, heads, size, dim)
        return F.scaled_dot_product_attention(folded, keys, values, attn_mask=self._visible).reshape(seqs, -1)


def by_kind(batch: Batch) -> tuple[list[PlacedRow], list[PlacedRow]]:
    """Rows of one query, and rows of several."""
    decode: list[PlacedRow] = []
    prompts: list[PlacedRow] = []
    first = 0
    for row in batch.rows:
        (decode if row.count == 1 else prompts).append((first, row))
        first += row.count
    return decode, prompts


def page_of_tokens(batch: Batch) -> torch.Tensor:
    """int64 ``[tokens]``: the page that takes each token's keys and values."""
    pages: list[int] = []
    for row in batch.rows:
        table = pages_of(row)
        pages += (table[at // BLOCK_TOKENS] for at in range(row.start, row.start + row.count))
    return torch.tensor(pages, dtype=torch.int64, device=batch.positions.device)


def pages_of(row: Row) -> list[int]:
    """The KV pages of a row's sequence, in order."""
    if row.seq.kv is None:
        raise RuntimeError("a row of a sequence that was never admitted")
    return row.seq.kv.pages


def _padded(pages: list[int], width: int) -> list[int]:
    """The first ``width`` pages; short tables repeat the sequence's own first page."""
    return pages[:width] + pages[:1] * (width - len(pages))
