"""Paged decode attention equals dense attention in fp64, wherever pages lie and however the context is split."""

from __future__ import annotations

import pytest
import torch

from readapt_kernels.attention.configs import DecodeConfig
from readapt_kernels.attention.decode.launcher import DecodeWorkspace, paged_decode, plan_decode
from readapt_kernels.attention.operands import HeadShape
from readapt_kernels.attention.reference import attend
from readapt_testing.kernels_attention import Case, Heads, make_case, only

RAGGED = [1, 15, 16, 17, 200]
SMALL = DecodeConfig(block_n=32, num_warps=4, num_stages=2, ctas_per_sm=1, min_share=1)


def workspace_for(case: Case, programs: int = 5, config: DecodeConfig = SMALL) -> DecodeWorkspace:
    """Partial results start as NaN: what is read must have been written."""
    shape = HeadShape(case.q.shape[1], case.kv.shape[3], case.q.shape[2])
    made = DecodeWorkspace.allocate(shape, 8, case.q.dtype, case.q.device, programs, config)
    made.acc.fill_(float("nan"))
    made.stats.fill_(float("nan"))
    return made


def decoded(case: Case, workspace: DecodeWorkspace | None = None) -> torch.Tensor:
    workspace = workspace or workspace_for(case)
    out = case.blank()
    plan_decode(case.seqs, workspace)
    paged_decode(case.q, case.kv, case.seqs, out, case.scale, workspace)
    assert not workspace.tickets.any(), "tickets are zero between launches"
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("group", [1, 3, 7, 8])
def test_groups_and_ragged_contexts(group: int, dtype: torch.dtype) -> None:
    case = make_case(Heads(group, 2, 64), RAGGED, dtype=dtype)

    case.assert_close(decoded(case))
