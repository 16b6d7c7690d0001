"""Attention on a CPU: rotation and KV write in one pass, decode rows straight from their pages, prompts by SDPA."""

from __future__ import annotations

import torch

from readapt_kernels.cpu.launcher import CpuKernels, KvLayout
from readapt_runtime.engine.core import Batch, BlockTable
from readapt_runtime.engine.pool import PagePool
from readapt_runtime.model.attention import PlacedRow, PromptAttention, QkNorm, by_kind, page_of_tokens, pages_of
from readapt_runtime.model.config import DecoderConfig


class CpuAttention:
    """See ``AttentionBackend``; for a pool whose keys lie ``[dim, tokens]`` in a block."""

    def __init__(
        self, config: DecoderConfig, pool: PagePool, rotary: tuple[torch.Tensor, torch.Tensor], kernels: CpuKernels
    ) -> None:
        self._kernels = kernels
        self._layout = KvLayout(config.num_heads, config.num_kv_heads, config.head_dim, pool.pages.stride(0))
        self._layers = [pool.pages[:, layer].data_ptr() for layer in range(config.num_layers)]
        self._width = config.num_heads * config.head_dim
        self._rotary = rotary
        self._rotates, self._eps = config.rotary_layers, config.rms_norm_eps
        self._prompts = PromptAttention(config, pool)
        self._positions = self._page_of = torch.empty(0, dtype=torch.int64)
        self._tokens = self._contexts = torch.empty(0, dtype=torch.int64)
        self._shape: list[tuple[BlockTable | None, int]] = []
        self._tables = torch.empty(0, 0, dtype=torch.int32)

    def plan(self, batch: Batch) -> None:
        self._positions = batch.positions
        self._page_of = page_of_tokens(batch)
        decode, prompts = by_kind(batch)
        self._prompts.plan(prompts)
        self._tokens = torch.tensor([at for at, _ in decode], dtype=torch.int64)
        self._contexts = batch.positions[self._tokens] + 1
        # tables only grow: those of the same sequences at the same lengths are the same
        shape = [(row.seq.kv, len(pages_of(row))) for _, row in decode]
        if shape != self._shape:
            self._shape, self._tables = shape, _tables(decode)

    def run(self, layer: int, qkv: torch.Tensor, norm: QkNorm | None) -> torch.Tensor:
        pool = self._layers[layer]
        rotary = self._rotary if self._rotates[layer] else None
        weights = None if norm is None else (norm.q, norm.k)
        self._kernels.rotate_write(
            *(qkv, rotary, self._positions, self._page_of, pool, self._layout), norm=weights, eps=self._eps
        )
        out = qkv.new_empty(qkv.shape[0], self._width)
        if len(self._tokens):
            self._kernels.attend(qkv, out, self._tokens, self._tables, self._contexts, pool, self._layout)
        self._prompts.run(layer, qkv, out)
        return out


def _tables(decode: list[PlacedRow]) -> torch.Tensor:
    """Page numbers int32 ``[rows, most pages of a row]``; what is beyond a row's own is never read."""
    pages = [pages_of(row) for _, row in decode]
    width = max(map(len, pages), default=0)
    return torch.tensor([[*own, *(0,) * (width - len(own))] for own in pages], dtype=torch.int32)
