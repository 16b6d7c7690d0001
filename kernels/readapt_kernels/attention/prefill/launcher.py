"""The plan of a step and the launch of a layer for paged prefill attention."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton

from readapt_kernels.attention.configs import PrefillConfig, padded, prefill_config
from readapt_kernels.attention.operands import HeadShape, Sequences, head_shape
from readapt_kernels.attention.plan.kernel import plan_prefill_kernel
from readapt_kernels.attention.prefill.kernel import prefill_kernel


@dataclass(frozen=True, slots=True)
class PrefillWorkspace:
    """The work items of a step: as many as the largest step can have, so that the grid never changes."""

    shape: HeadShape
    config: PrefillConfig
    items: torch.Tensor  # int32 [items, 2]

    @classmethod
    def allocate(
        cls,
        shape: HeadShape,
        max_tokens: int,
        max_seqs: int,
        dtype: torch.dtype,
        device: torch.device,
        config: PrefillConfig | None = None,
    ) -> PrefillWorkspace:
        """For steps of at most ``max_tokens`` new tokens in at most ``max_seqs`` sequences."""
        config = config or prefill_config(shape.dim, dtype)
        if shape.group > config.rows:
            raise ValueError(f"a group of {shape.group} query heads does not fit a tile of {config.rows} rows")
        most = max_tokens // (config.rows // shape.group) + max_seqs
        return cls(shape, config, torch.full((most, 2), -1, dtype=torch.int32, device=device))

    @property
    def tile_tokens(self) -> int:
        return self.config.rows // self.shape.group


def plan_prefill(seqs: Sequences, workspace: PrefillWorkspace) -> None:
    """Lists the tiles of the step's chunks; before the first layer."""
    if seqs.count.device != workspace.items.device:
        raise ValueError("the sequences and the workspace lie on different devices")
    plan_prefill_kernel[(workspace.items.shape[0],)](
        seqs.count,
        seqs.query_lens,
        workspace.items,
        seqs.max_seqs,
        TILE_TOKENS=workspace.tile_tokens,
        SEQS=triton.next_power_of_2(seqs.max_seqs),
        num_warps=1,
    )


def paged_prefill(
    q: torch.Tensor,
    kv: torch.Tensor,
    seqs: Sequences,
    out: torch.Tensor,
    scale: float,
    workspace: PrefillWorkspace,
) -> None:
    """out ``[tokens, heads, dim]`` at the new tokens of each sequence; other rows stay as they are.

    q ``[tokens, heads, dim]``; kv ``[pages, 2, page tokens, kv heads, dim]``, one layer's view of the pool with this
    step's keys already written. Needs ``plan_prefill`` with the same sequences before, once for all layers. The result
    depends neither on other sequences of the batch nor on where pages lie nor on how a prompt is cut into chunks.
    Raises ValueError for operands that do not fit together.
    """
    shape = head_shape(q, kv, out, seqs)
    if shape != workspace.shape:
        raise ValueError(f"{shape} does not fit the workspace for {workspace.shape}")
    if q.shape[0] // workspace.tile_tokens + seqs.max_seqs > workspace.items.shape[0]:
        raise ValueError(f"{q.shape[0]} tokens in {seqs.max_seqs} sequences exceed the workspace's work items")
    prefill_kernel[(shape.kv_heads, workspace.items.shape[0])](
        q,
        kv,
        out,
        seqs.query_starts,
        seqs.query_lens,
        seqs.context_lens,
        seqs.page_table,
        workspace.items,
        scale * math.log2(math.e),
        q.stride(0),
        q.stride(1),
        out.stride(0),
        out.stride(1),
        kv.stride(0),
        kv.stride(1),
        kv.stride(2),
        kv.stride(3),
        seqs.page_table.stride(0),
        GROUP=shape.group,
        HEAD_DIM=shape.dim,
        PAGE_TOKENS=kv.shape[2],
        TILE_TOKENS=workspace.tile_tokens,
        ROWS=workspace.config.rows,
        DIM=padded(shape.dim),
        BLOCK_N=workspace.config.block_n,
        num_warps=workspace.config.num_warps,
        num_stages=workspace.config.num_stages,
    )
