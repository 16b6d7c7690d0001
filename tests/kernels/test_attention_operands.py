"""The reference is dense attention, and launchers refuse operands that do not fit before anything runs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from readapt_kernels.attention.configs import decode_config, padded, prefill_config
from readapt_kernels.attention.decode.launcher import DecodeWorkspace, paged_decode, plan_decode
from readapt_kernels.attention.operands import HeadShape, Sequences
from readapt_kernels.attention.prefill.launcher import PrefillWorkspace, paged_prefill
from readapt_kernels.attention.reference import attend
from readapt_testing.kernels_attention import Case, Heads, make_case


@pytest.fixture
def case() -> Case:
    return make_case(Heads(2, 2, 32), [20, 0, 35], [7, 1, 1])


def test_reference_is_dense_attention(case: Case) -> None:
    out = attend(case.q.double(), case.kv.double(), case.seqs, case.scale).cpu()
    expected = case.expected()

    torch.testing.assert_close(out, expected.nan_to_num(), rtol=1e-12, atol=1e-12)
    assert not out[expected.isnan()].any()


def _wrong_operands(case: Case) -> dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    q, kv, out = case.q, case.kv, case.blank()
    wide = torch.empty(*q.shape[:2], 2 * q.shape[2], device=q.device)
    return {
        "are not both": (q, kv, out[:-1]),
        "page tokens, kv heads, dim": (q, kv[..., :16], out),
        "differ in dtype": (q, kv.half(), out),
        "neighbours": (wide[..., ::2], kv, out),
        "cannot share": (q[:, :3], kv, out[:, :3]),
        "does not fit|do not fit": (q[:, :2], kv, out[:, :2]),
    }


@pytest.mark.parametrize("which", range(6))
def test_operands_that_do_not_fit_are_refused(case: Case, which: int) -> None:
    shape = HeadShape(4, 2, 32)
    decode = DecodeWorkspace.allocate(shape, 8, case.q.dtype, case.q.device, programs=2)
    prefill = PrefillWorkspace.allocate(shape, 64, 8, case.q.dtype, case.q.device)
    message, (q, kv, out) = list(_wrong_operands(case).items())[which]

    with pytest.raises(ValueError, match=message):
        paged_decode(q, kv, case.seqs, out, case.scale, decode)
    with pytest.raises(ValueError, match=message):
        paged_prefill(q, kv, case.seqs, out, case.scale, prefill)


def test_workspaces_that_are_too_small_are_refused(case: Case) -> None:
    shape = HeadShape(4, 2, 32)
    with pytest.raises(ValueError, match="for 2 sequences"):
        plan_decode(case.seqs, DecodeWorkspace.allocate(shape, 2, case.q.dtype, case.q.device, programs=2))
    few = PrefillWorkspace.allocate(shape, 2, 1, case.q.dtype, case.q.device)
    with pytest.raises(ValueError, match="work items"):
        paged_prefill(case.q, case.kv, case.seqs, case.blank(), case.scale, few)
    with pytest.raises(ValueError, match="does not fit a tile"):
        PrefillWorkspace.allocate(HeadShape(256, 1, 32), 64, 8, case.q.dtype, case.q.device)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context_lens": torch.zeros(8, dtype=torch.int64)}, "int32"),
        ({"count": torch.zeros(2, dtype=torch.int32)}, r"count is \[1\]"),
        ({"query_lens": torch.zeros(7, dtype=torch.int32)}, r"not all \[8\]"),
        ({"query_starts": torch.zeros(16, dtype=torch.int32)[::2]}, "contiguous"),
    ],
    ids=["dtype", "count", "length", "stride"],
)
def test_buffers_of_sequences_are_checked(changes: dict[str, torch.Tensor], message: str) -> None:
    buffers = {name: torch.zeros(8, dtype=torch.int32) for name in ("query_starts", "query_lens", "context_lens")}
    fitting = Sequences(torch.zeros(1, dtype=torch.int32), **buffers, page_table=torch.zeros(8, 4, dtype=torch.int32))

    with pytest.raises(ValueError, match=message):
        replace(fitting, **changes)


def test_tables_know_what_they_do_not_have() -> None:
    assert [padded(dim) for dim in (8, 32, 80, 96, 256)] == [16, 32, 128, 128, 256]
    for table in (decode_config, prefill_config):
        for dim, dtype in ((257, torch.float16), (64, torch.float64), (64, torch.int16)):
            with pytest.raises(ValueError, match="no attention kernel"):
                table(dim, dtype)
