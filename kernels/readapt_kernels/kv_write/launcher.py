"""Checks shapes and strides, then launches the KV write."""

from __future__ import annotations

import torch
import triton

from readapt_kernels.kv_write.kernel import kv_write_kernel


def kv_write(k: torch.Tensor, v: torch.Tensor, kv: torch.Tensor, slots: torch.Tensor, count: torch.Tensor) -> None:
    """Writes the first ``count`` tokens of a step into their pages, in place.

    k and v ``[tokens, kv heads, dim]``, any token and head stride (a slice of a fused qkv row will do). kv ``[pages, 2,
    page tokens, kv heads, dim]``, one layer's view of the pool, any strides but the last; the dtype is converted to
    the pool's. slots int32 ``[>= tokens]``: page * page tokens + place in the page; what is past the count is not read.
    count int32 ``[1]``, read on the device. Raises ValueError for operands that do not fit together.
    """
    _check(k, v, kv, slots, count)
    tokens, heads, dim = k.shape
    if tokens == 0:
        return
    kv_write_kernel[(tokens,)](
        k,
        v,
        kv,
        slots,
        count,
        k.stride(0),
        k.stride(1),
        v.stride(0),
        v.stride(1),
        kv.stride(0),
        kv.stride(1),
        kv.stride(2),
        kv.stride(3),
        KV_HEADS=heads,
        HEAD_DIM=dim,
        PAGE_TOKENS=kv.shape[2],
        HEADS=triton.next_power_of_2(heads),
        DIM=triton.next_power_of_2(dim),
        num_warps=4 if heads * dim >= 1024 else 1,
    )


def _check(k: torch.Tensor, v: torch.Tensor, kv: torch.Tensor, slots: torch.Tensor, count: torch.Tensor) -> None:
    if k.dim() != 3 or v.shape != k.shape or v.dtype != k.dtype:
        raise ValueError(f"keys {_look(k)} and values {_look(v)} are not both [tokens, kv heads, dim] of one dtype")
    if kv.dim() != 5 or kv.shape[1] != 2 or kv.shape[3:] != k.shape[1:]:
        raise ValueError(f"pages {_look(kv)} are not [pages, 2, page tokens, kv heads, dim] for keys {_look(k)}")
    if k.stride(-1) != 1 or v.stride(-1) != 1 or kv.stride(-1) != 1:
        raise ValueError("the elements of a head must be neighbours in keys, values and pages")
    if slots.dtype != torch.int32 or slots.dim() != 1 or slots.stride(0) != 1 or slots.shape[0] < k.shape[0]:
        raise ValueError(f"slots {_look(slots)} are not contiguous int32 [>= {k.shape[0]}]")
    if count.dtype != torch.int32 or count.numel() != 1:
        raise ValueError(f"count {_look(count)} is not int32 [1]")
    if len({t.device for t in (k, v, kv, slots, count)}) != 1:
        raise ValueError("operands of the KV write lie on different devices")


def _look(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
