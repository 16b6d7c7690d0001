"""The KV write puts each token's keys and values into its slot and touches nothing else."""

from __future__ import annotations

import pytest
import torch

from readapt_kernels.kv_write.launcher import kv_write
from readapt_kernels.kv_write.reference import write
from readapt_testing.triton_modes import DEVICE

PAGES, LAYERS, PAGE_TOKENS, TOKENS = 6, 3, 16, 20


def pool(heads: int, dim: int, page_major: bool, dtype: torch.dtype) -> torch.Tensor:
    """``[pages, 2, page tokens, kv heads, dim]`` of the middle layer, in either order, nothing written."""
    elements = 2 * PAGE_TOKENS * heads * dim
    order = (PAGES, LAYERS, elements) if page_major else (LAYERS, PAGES, elements)
    memory = torch.full(order, float("nan"), dtype=dtype, device=DEVICE)
    layer = memory[:, 1] if page_major else memory[1]
    return layer.view(PAGES, 2, PAGE_TOKENS, heads, dim)


def fused_step(heads: int, dim: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values as slices of a fused row that also holds queries."""
    random = torch.Generator().manual_seed(1)
    fused = torch.randn(TOKENS, 4 * heads, dim, generator=random).to(dtype).to(DEVICE)
    return fused[:, 2 * heads : 3 * heads], fused[:, 3 * heads :]


def permuted_slots() -> torch.Tensor:
    random = torch.Generator().manual_seed(2)
    return torch.randperm(PAGES * PAGE_TOKENS, generator=random)[:TOKENS].int().to(DEVICE)


def counted(count: int) -> torch.Tensor:
    return torch.tensor([count], dtype=torch.int32, device=DEVICE)


@pytest.mark.parametrize("page_major", [True, False], ids=["page-major", "layer-major"])
@pytest.mark.parametrize(("heads", "dim"), [(1, 64), (2, 80), (3, 96), (8, 32)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"])
def test_each_token_lands_in_its_slot(heads: int, dim: int, page_major: bool, dtype: torch.dtype) -> None:
    k, v = fused_step(heads, dim, dtype)
    kv, slots = pool(heads, dim, page_major, dtype), permuted_slots()
    kv_write(k, v, kv, slots, counted(TOKENS))

    for token, slot in enumerate(slots.tolist()):
        assert torch.equal(kv[slot // PAGE_TOKENS, 0, slot % PAGE_TOKENS], k[token])
        assert torch.equal(kv[slot // PAGE_TOKENS, 1, slot % PAGE_TOKENS], v[token])
    assert int((~kv.isnan()).sum()) == 2 * TOKENS * heads * dim


@pytest.mark.parametrize("count", [0, 1, 13])
def test_tokens_past_the_count_write_nothing_and_their_slots_are_not_read(count: int) -> None:
    k, v = fused_step(2, 64, torch.float32)
    kv, slots = pool(2, 64, True, torch.float32), permuted_slots()
    expected = kv.clone()
    write(k, v, expected, slots, count)
    slots[count:] = 2**31 - 1
    kv_write(k, v, kv, slots, counted(count))

    assert torch.equal(kv.nan_to_num(), expected.nan_to_num())
    assert int((~kv.isnan()).sum()) == 2 * count * 2 * 64


def test_a_pool_of_another_dtype_gets_converted_values() -> None:
    k, v = fused_step(2, 64, torch.float32)
    written, expected = (pool(2, 64, True, torch.float16) for _ in range(2))
    slots = permuted_slots()
    kv_write(k, v, written, slots, counted(TOKENS))
    write(k, v, expected, slots, TOKENS)

    assert torch.equal(written.nan_to_num(), expected.nan_to_num())


def test_operands_that_do_not_fit_are_refused() -> None:
    k, v = fused_step(2, 64, torch.float32)
    kv, slots, count = pool(2, 64, True, torch.float32), permuted_slots(), counted(1)
    wide = torch.empty(TOKENS, 2, 128, device=DEVICE)
    wrong = {
        "of one dtype": (k, v.half(), kv, slots, count),
        "page tokens, kv heads, dim": (k[:, :1], v[:, :1], kv, slots, count),
        "neighbours": (wide[..., ::2], v, kv, slots, count),
        "slots": (k, v, kv, slots.long(), count),
        "are not contiguous int32": (k, v, kv, slots[:-1], count),
        "count": (k, v, kv, slots, slots),
    }
    for message, operands in wrong.items():
        with pytest.raises(ValueError, match=message):
            kv_write(*operands)
