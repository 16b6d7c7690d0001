"""Buffers, the plan of a step and the launch of a layer for paged decode attention."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton

from readapt_kernels.attention.configs import DecodeConfig, decode_config, padded
from readapt_kernels.attention.decode.kernel import decode_kernel
from readapt_kernels.attention.operands import HeadShape, Sequences, head_shape
from readapt_kernels.attention.plan.kernel import plan_decode_kernel


@dataclass(frozen=True, slots=True)
class DecodeWorkspace:
    """The memory of decode attention, made once: one launch at a time may use it, so one per stream.

    Its layout depends on the model and the GPU only; whatever the batch, the same buffers and grid serve.
    """

    shape: HeadShape
    config: DecodeConfig
    plan: torch.Tensor  # int32 [2 + 2 * programs]
    acc: torch.Tensor  # fp32 [programs, 2, group, dim]
    stats: torch.Tensor  # fp32 [programs, 2, 2, group]
    tickets: torch.Tensor  # int32 [max sequences, kv heads], zero between launches

    @classmethod
    def allocate(
        cls,
        shape: HeadShape,
        max_seqs: int,
        dtype: torch.dtype,
        device: torch.device,
        programs: int | None = None,
        config: DecodeConfig | None = None,
    ) -> DecodeWorkspace:
        """``programs`` is the size of the grid; by default as many as the device runs at once."""
        config = config or decode_config(shape.dim, dtype)
        count = programs or config.ctas_per_sm * torch.cuda.get_device_properties(device).multi_processor_count
        return cls(
            shape=shape,
            config=config,
            plan=torch.zeros(2 + 2 * count, dtype=torch.int32, device=device),
            acc=torch.empty(count, 2, shape.group, shape.dim, dtype=torch.float32, device=device),
            stats=torch.empty(count, 2, 2, shape.group, dtype=torch.float32, device=device),
            tickets=torch.zeros(max_seqs, shape.kv_heads, dtype=torch.int32, device=device),
        )

    @property
    def programs(self) -> int:
        return self.acc.shape[0]


def plan_decode(seqs: Sequences, workspace: DecodeWorkspace) -> None:
    """Divides the step's context among the programs; before the first layer, inside the captured graph."""
    if seqs.max_seqs > workspace.tickets.shape[0] or seqs.count.device != workspace.plan.device:
        raise ValueError(f"a workspace for {workspace.tickets.shape[0]} sequences got buffers for {seqs.max_seqs}")
    plan_decode_kernel[(workspace.programs,)](
        seqs.count,
        seqs.context_lens,
        workspace.plan,
        seqs.max_seqs,
        workspace.programs,
        workspace.config.min_share,
        KV_HEADS=workspace.shape.kv_heads,
        BLOCK_N=workspace.config.block_n,
        SEQS=triton.next_power_of_2(seqs.max_seqs),
        num_warps=4,
    )


def paged_decode(
    q: torch.Tensor,
    kv: torch.Tensor,
    seqs: Sequences,
    out: torch.Tensor,
    scale: float,
    workspace: DecodeWorkspace,
) -> None:
    """out ``[tokens, heads, dim]`` at each sequence's query row; other rows stay as they are.

    q ``[tokens, heads, dim]``; kv ``[pages, 2, page tokens, kv heads, dim]``, one layer's view of the pool with this
    step's keys already written. Needs ``plan_decode`` with the same sequences before, once for all layers. An empty
    context gives zeros. The result depends on other sequences of the batch by fp32 round-off (they move where the
    context is split), and not on where pages lie. Raises ValueError for operands that do not fit together.
    """
    shape = head_shape(q, kv, out, seqs)
    if shape != workspace.shape or seqs.max_seqs > workspace.tickets.shape[0]:
        raise ValueError(f"{shape} and {seqs.max_seqs} sequences do not fit the workspace for {workspace.shape}")
    decode_kernel[(workspace.programs,)](
        q,
        kv,
        out,
        seqs.query_starts,
        seqs.context_lens,
        seqs.page_table,
        workspace.plan,
        workspace.acc,
        workspace.stats,
        workspace.tickets,
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
        KV_HEADS=shape.kv_heads,
        GROUP=shape.group,
        HEAD_DIM=shape.dim,
        PAGE_TOKENS=kv.shape[2],
        ROWS=max(16, triton.next_power_of_2(shape.group)),
        DIM=padded(shape.dim),
        BLOCK_N=workspace.config.block_n,
        num_warps=workspace.config.num_warps,
        num_stages=workspace.config.num_stages,
    )
