"""Attention on a CPU: rotation and KV write in one pass, decode rows straight from their pages, prompts by SDPA."""

from __future__ import annotations

import torch

from readapt_kernels.cpu.launcher import CpuKernels, KvLayout
from readapt_kernels.cpu.stack import Rows
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
        self.layout = KvLayout(config.num_heads, config.num_kv_heads, config.head_dim, pool.pages.stride(0))
        self.layers = [pool.pages[:, layer].data_ptr() for layer in range(config.num_layers)]
        """Addresses of the layers' pages."""
        self._width = config.num_heads * config.head_dim
        self._rotary = rotary
        self._rotates, self._eps = config.rotary_layers, config.rms_norm_eps
        self._prompts = PromptAttention(config, pool)
        self._positions = self._page_of = torch.empty(0, dtype=torch.int64)
        self._shape: list[tuple[BlockTable | None, int]] = []
        none = torch.empty(0, dtype=torch.int64)
        self.rows = Rows(none, none, none, none, torch.empty(0, 0, dtype=torch.int32))
        """Those of the step that decode."""

    @property
    def only_decodes(self) -> bool:
        return len(self.rows.tokens) == len(self._positions)

    def rotary(self, layer: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """cos and sin ``[positions, dim]``; None for layers without rotation."""
        return self._rotary if self._rotates[layer] else None

    def plan(self, batch: Batch) -> None:
        self._positions = batch.positions
        self._page_of = page_of_tokens(batch)
        decode, prompts = by_kind(batch)
        self._prompts.plan(prompts)
        tokens = torch.tensor([at for at, _ in decode], dtype=torch.int64)
        positions = batch.positions[tokens]
        # tables only grow: those of the same sequences at the same lengths are the same
        shape = [(row.seq.kv, len(pages_of(row))) for _, row in decode]
        tables = self.rows.tables if shape == self._shape else _tables(decode)
        self._shape = shape
        self.rows = Rows(tokens, positions, self._page_of[tokens], positions + 1, tables)

    def run(self, layer: int, qkv: torch.Tensor, norm: QkNorm | None) -> torch.Tensor:
        pool, rows = self.layers[layer], self.rows
        weights = None if norm is None else (norm.q, norm.k)
        self._kernels.rotate_write(
            *(qkv, self.rotary(layer), self._positions, self._page_of, pool, self.layout),
            norm=weights,
            eps=self._eps,
        )
        out = qkv.new_empty(qkv.shape[0], self._width)
        if len(rows.tokens):
            self._kernels.attend(qkv, out, rows.tokens, rows.tables, rows.contexts, pool, self.layout)
        self._prompts.run(layer, qkv, out)
        return out


def _tables(decode: list[PlacedRow]) -> torch.Tensor:
    """Page numbers int32 ``[rows, most pages of a row]``; what is beyond a row's own is never read."""
    pages = [pages_of(row) for _, row in decode]
    width = max(map(len, pages), default=0)
    return torch.tensor([[*own, *(0,) * (width - len(own))] for own in pages], dtype=torch.int32)
