"""Attention by the Triton kernels: KV write, decode rows and prompts in one launch each, over static buffers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from readapt_kernels.attention.decode.launcher import DecodeWorkspace, paged_decode, plan_decode
from readapt_kernels.attention.operands import HeadShape, Sequences
from readapt_kernels.attention.prefill.launcher import PrefillWorkspace, paged_prefill, plan_prefill
from readapt_kernels.kv_write.launcher import kv_write
from readapt_runtime.engine.core import Batch
from readapt_runtime.engine.pool import BLOCK_TOKENS, PagePool, kv_pages
from readapt_runtime.model.attention import (
    PlacedRow,
    QkNorm,
    Rotation,
    by_kind,
    page_of_tokens,
    pages_of,
)
from readapt_runtime.model.config import DecoderConfig

_INTERPRETED_PROGRAMS = 3


class TritonAttention:
    """See ``AttentionBackend``; for a pool whose blocks are ``[tokens, kv heads, dim]``."""

    def __init__(
        self,
        config: DecoderConfig,
        pool: PagePool,
        tables: tuple[torch.Tensor, torch.Tensor],
        max_tokens: int,
        max_running: int,
        max_model_len: int,
    ) -> None:
        device, dtype = pool.device, pool.dtype
        self._shape = HeadShape(config.num_heads, config.num_kv_heads, config.head_dim)
        heads = (config.num_kv_heads, config.head_dim)
        self._kv = [
            pool.pages[:, layer].view(pool.num_pages, 2, BLOCK_TOKENS, *heads) for layer in range(config.num_layers)
        ]
        self._rotation = Rotation(config, tables)
        self._scale = config.head_dim**-0.5
        programs = None if device.type == "cuda" else _INTERPRETED_PROGRAMS
        self._decode_space = DecodeWorkspace.allocate(self._shape, max_running, dtype, device, programs)
        self._prompt_space = PrefillWorkspace.allocate(self._shape, max_tokens, max_running, dtype, device)
        width = kv_pages(max_model_len)
        self._decode, self._prompts = (_Buffers(max_running, width, device) for _ in range(2))
        self._slots = torch.zeros(max_tokens, dtype=torch.int32, device=device)
        self._count = torch.zeros(1, dtype=torch.int32, device=device)

    def plan(self, batch: Batch) -> None:
        tokens = len(batch.token_ids)
        self._rotation.plan(batch)
        self._slots[:tokens] = (page_of_tokens(batch) * BLOCK_TOKENS + batch.positions % BLOCK_TOKENS).int()
        self._count.fill_(tokens)
        decode, prompts = by_kind(batch)
        self._decode.fill(decode)
        self._prompts.fill(prompts)
        if decode:
            plan_decode(self._decode.sequences, self._decode_space)
        if prompts:
            plan_prefill(self._prompts.sequences, self._prompt_space)

    def run(self, layer: int, qkv: torch.Tensor, norm: QkNorm | None) -> torch.Tensor:
        q, k, v = self._rotation.run(layer, qkv, norm)
        kv = self._kv[layer]
        kv_write(k, v, kv, self._slots, self._count)
        out = torch.empty_like(q)
        if self._decode.filled:
            paged_decode(q, kv, self._decode.sequences, out, self._scale, self._decode_space)
        if self._prompts.filled:
            paged_prefill(q, kv, self._prompts.sequences, out, self._scale, self._prompt_space)
        return out.flatten(1)


class _Buffers:
    """The static description of some rows, filled anew for each step."""

    def __init__(self, max_seqs: int, max_pages: int, device: torch.device) -> None:
        def buffer(*shape: int) -> torch.Tensor:
            return torch.zeros(*shape, dtype=torch.int32, device=device)

        self.sequences = Sequences(
            buffer(1), buffer(max_seqs), buffer(max_seqs), buffer(max_seqs), buffer(max_seqs, max_pages)
        )
        self.filled = False

    def fill(self, rows: Sequence[PlacedRow]) -> None:
        s, count = self.sequences, len(rows)
        self.filled = bool(rows)
        s.count.fill_(count)
        for target, values in (
            (s.query_starts, [first for first, _ in rows]),
            (s.query_lens, [row.count for _, row in rows]),
            (s.context_lens, [row.start + row.count for _, row in rows]),
        ):
            target[:count] = torch.tensor(values, dtype=torch.int32)
        for index, (_, row) in enumerate(rows):
            pages = pages_of(row)[: s.page_table.shape[1]]
            s.page_table[index, : len(pages)] = torch.tensor(pages, dtype=torch.int32)
