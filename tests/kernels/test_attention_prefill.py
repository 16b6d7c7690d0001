"""Paged prefill attention equals dense causal attention in fp64, in one piece or in chunks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from readapt_kernels.attention.configs import PrefillConfig
from readapt_kernels.attention.operands import HeadShape
from readapt_kernels.attention.prefill.launcher import PrefillWorkspace, paged_prefill, plan_prefill
from readapt_testing.kernels_attention import Case, Heads, copied_into, make_case, only

CONTEXTS, NEW = [1, 15, 16, 17, 200], [1, 15, 3, 17, 60]
SMALL = PrefillConfig(rows=64, block_n=32, num_warps=4, num_stages=1)


def workspace_for(case: Case, config: PrefillConfig | None = SMALL) -> PrefillWorkspace:
    shape = HeadShape(case.q.shape[1], case.kv.shape[3], case.q.shape[2])
    made = PrefillWorkspace.allocate(shape, case.q.shape[0], 8, case.q.dtype, case.q.device, config)
    made.items.fill_(2**30)
    return made


def prefilled(case: Case, workspace: PrefillWorkspace | None = None) -> torch.Tensor:
    workspace = workspace or workspace_for(case)
    out = case.blank()
    plan_prefill(case.seqs, workspace)
    paged_prefill(case.q, case.kv, case.seqs, out, case.scale, workspace)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("group", [1, 3, 7, 8])
def test_groups_and_ragged_chunks(group: int, dtype: torch.dtype) -> None:
    case = make_case(Heads(group, 1, 64), CONTEXTS, NEW, dtype=dtype)

    case.assert_close(prefilled(case))


@pytest.mark.parametrize("dim", [32, 80, 96, 128, 256])
def test_head_sizes_with_the_table_s_own_tiles(dim: int) -> None:
    case = make_case(Heads(2, 1, dim), [70, 90], [70, 5], dtype=torch.float16)

    case.assert_close(prefilled(case, workspace_for(case, config=None)))


def test_a_prompt_in_chunks_equals_the_prompt_in_one_piece() -> None:
    """Every query meets the same blocks of keys in the same order: equal but for the last bit.

    The interpreter's products are numpy's, which on some processors sum a row otherwise at another place in its block.
    """
    whole = make_case(Heads(3, 2, 64), [150], [150], dtype=torch.float16)
    start = int(whole.seqs.query_starts[0])
    expected = prefilled(whole)
    out = whole.blank()
    workspace = workspace_for(whole)
    for begin, stop in ((0, 50), (50, 51), (51, 128), (128, 150)):
        chunk = replace(
            whole.seqs,
            query_starts=torch.full_like(whole.seqs.query_starts, start + begin),
            query_lens=torch.full_like(whole.seqs.query_lens, stop - begin),
            context_lens=torch.full_like(whole.seqs.context_lens, stop),
        )
        plan_prefill(chunk, workspace)
        paged_prefill(whole.q, whole.kv, chunk, out, whole.scale, workspace)

    whole.assert_close(out)
    torch.testing.assert_close(out, expected, rtol=2**-10, atol=2**-16, equal_nan=True)


def test_where_pages_lie_does_not_change_a_bit() -> None:
    results = [prefilled(make_case(Heads(3, 1, 64), CONTEXTS, NEW, page_seed=seed)) for seed in range(3)]

    assert all(torch.equal(results[0].nan_to_num(), other.nan_to_num()) for other in results[1:])


def test_companions_do_not_change_a_bit() -> None:
    case = make_case(Heads(3, 1, 64), CONTEXTS, NEW)
    together = prefilled(case)

    for s, new in enumerate(NEW):
        start = int(case.seqs.query_starts[s])
        rows = slice(start, start + new)
        assert torch.equal(prefilled(only(case, s))[rows], together[rows])


def test_one_set_of_buffers_serves_batch_after_batch() -> None:
    """As in a captured graph: same tensors, other content; what the larger batch left behind is not read."""
    first = make_case(Heads(3, 1, 32), [100, 64, 17, 33], [100, 10, 17, 2])
    workspace = workspace_for(first)
    first.assert_close(prefilled(first, workspace))

    for contexts, new in (([15], [15]), ([3, 90], [1, 40])):
        later = copied_into(first, make_case(Heads(3, 1, 32), contexts, new, seed=len(contexts)))
        later.assert_close(prefilled(later, workspace))
        assert later.seqs.page_table is first.seqs.page_table


def test_no_sequences_and_chunks_without_tokens_write_nothing() -> None:
    case = make_case(Heads(3, 1, 32), [20, 40], [5, 40])
    nobody = replace(case.seqs, count=torch.zeros_like(case.seqs.count))
    assert prefilled(replace(case, seqs=nobody)).isnan().all()

    case.seqs.query_lens[0] = 0
    out = prefilled(case)
    start = int(case.seqs.query_starts[0])
    assert out[start : start + 5].isnan().all()
    assert not out[int(case.seqs.query_starts[1])].isnan().any()


def test_one_new_token_agrees_with_decode() -> None:
    case = make_case(Heads(7, 2, 64), [1, 17, 120], dtype=torch.float16)

    case.assert_close(prefilled(case))
