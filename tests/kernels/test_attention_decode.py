"""Paged decode attention equals dense attention in fp64, wherever pages lie and however the context is split."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from readapt_kernels.attention.configs import DecodeConfig
from readapt_kernels.attention.decode.launcher import DecodeWorkspace, paged_decode, plan_decode
from readapt_kernels.attention.operands import HeadShape
from readapt_testing.kernels_attention import Case, Heads, copied_into, make_case, only
from readapt_testing.triton_modes import programs_in_order

RAGGED = [1, 15, 16, 17, 200]
SMALL = DecodeConfig(block_n=32, num_warps=4, num_stages=2, ctas_per_sm=1, min_share=1)


def workspace_for(case: Case, programs: int = 5, config: DecodeConfig | None = SMALL) -> DecodeWorkspace:
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


@pytest.mark.parametrize("dim", [32, 80, 96, 128, 256])
def test_head_sizes_with_the_table_s_own_tiles(dim: int) -> None:
    case = make_case(Heads(2, 1, dim), [5, 150], dtype=torch.float16)

    case.assert_close(decoded(case, workspace_for(case, config=None)))


@pytest.mark.parametrize("programs", [1, 2, 3, 7, 16, 40])
def test_any_number_of_programs(programs: int) -> None:
    case = make_case(Heads(3, 2, 32), [70, 1, 129])

    case.assert_close(decoded(case, workspace_for(case, programs)))


def test_an_empty_context_gives_zeros_and_no_sequences_give_nothing() -> None:
    case = make_case(Heads(3, 2, 32), [0, 40, 0])
    case.assert_close(decoded(case))

    nobody = replace(case.seqs, count=torch.zeros_like(case.seqs.count))
    assert decoded(replace(case, seqs=nobody)).isnan().all()


def test_work_is_even_to_one_block_however_ragged_the_batch() -> None:
    case = make_case(Heads(1, 2, 32), [1, 2, 800, 3, 33])
    workspace = workspace_for(case, programs=8)
    plan_decode(case.seqs, workspace)
    share, total, *starts = workspace.plan.tolist()

    assert total == 2 * sum(max(1, -(-n // SMALL.block_n)) for n in (1, 2, 800, 3, 33))
    assert share == -(-total // 8)
    # every stretch starts where a walk through (sequence, blocks of all its heads) arrives
    blocks = [2 * max(1, -(-n // SMALL.block_n)) for n in (1, 2, 800, 3, 33)]
    walked = [(seq, offset) for seq, count in enumerate(blocks) for offset in range(count)]
    begins = [i * share for i in range(8) if i * share < total]
    assert [tuple(starts[2 * i : 2 * i + 2]) for i in range(len(begins))] == [walked[at] for at in begins]


def test_where_pages_lie_does_not_change_a_bit() -> None:
    results = [decoded(make_case(Heads(3, 2, 64), RAGGED, page_seed=seed)) for seed in range(3)]

    assert all(torch.equal(results[0].nan_to_num(), other.nan_to_num()) for other in results[1:])


def test_whichever_program_comes_last_joins_to_the_same_bits() -> None:
    case = make_case(Heads(3, 1, 32), [700, 90])
    orders = [list(range(6)), list(reversed(range(6))), [3, 0, 5, 1, 4, 2]]
    results = []
    for order in orders:
        workspace = workspace_for(case, programs=6)
        with programs_in_order(order):
            results.append(decoded(case, workspace))

    assert all(torch.equal(results[0].nan_to_num(), other.nan_to_num()) for other in results[1:])


def test_companions_change_a_result_by_round_off_only() -> None:
    case = make_case(Heads(3, 2, 64), RAGGED)
    together = decoded(case)

    for s in range(len(RAGGED)):
        alone, row = decoded(only(case, s)), int(case.seqs.query_starts[s])
        torch.testing.assert_close(alone[row], together[row], rtol=0, atol=2e-6)


def test_one_set_of_buffers_serves_batch_after_batch() -> None:
    """As in a captured graph: same tensors, other content; what the larger batch left behind is not read."""
    first = make_case(Heads(3, 2, 32), [200, 64, 17, 90, 33])
    workspace = workspace_for(first)
    first.assert_close(decoded(first, workspace))

    for contexts in ([15], [3, 120], [16, 0, 1]):
        later = copied_into(first, make_case(Heads(3, 2, 32), contexts, seed=len(contexts)))
        later.assert_close(decoded(later, workspace))
        assert later.seqs.page_table is first.seqs.page_table


def test_a_layer_of_the_pool_in_either_order_and_heads_from_a_fused_row() -> None:
    case = make_case(Heads(2, 2, 32), [40, 100])
    pages, _, page_tokens, kv_heads, dim = case.kv.shape
    fused = torch.full((case.q.shape[0], 4 + 2 * kv_heads, dim), float("nan"), device=case.q.device)
    fused[:, :4] = case.q
    elements = 2 * page_tokens * kv_heads * dim
    for order in ((pages, 3, elements), (3, pages, elements)):
        pool = torch.full(order, float("nan"), device=case.q.device)
        layer = pool[:, 1] if order[1] == 3 else pool[1]
        layer.copy_(case.kv.reshape(pages, elements))
        view = layer.view(case.kv.shape)
        laid_out = replace(case, q=fused[:, :4], kv=view)
        laid_out.assert_close(decoded(laid_out))
