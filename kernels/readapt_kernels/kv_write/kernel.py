"""The KV write: one program per token copies its keys and its values into one slot of a page.

``kv[slot // P, 0, slot % P] = k[t]``, ``kv[slot // P, 1, slot % P] = v[t]`` for ``t < count``; programs past the count
end after one scalar load, so that a captured launch of any width serves every smaller step.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def kv_write_kernel(
    k_ptr,  # [tokens, kv heads, dim]
    v_ptr,  # [tokens, kv heads, dim]
    kv_ptr,  # [pages, 2, page tokens, kv heads, dim]
    slots_ptr,  # int32 [tokens]: page * page tokens + place in the page
    count_ptr,  # int32 [1]
    k_token_stride,
    k_head_stride,
    v_token_stride,
    v_head_stride,
    page_stride,
    value_stride,  # from the keys of a page to its values
    slot_stride,
    head_stride,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    HEADS: tl.constexpr,  # power of two >= KV_HEADS
    DIM: tl.constexpr,  # power of two >= HEAD_DIM
):
    token = tl.program_id(0)
    if token >= tl.load(count_ptr):
        return
    slot = tl.load(slots_ptr + token)
    page = (slot // PAGE_TOKENS).to(tl.int64)
    place = kv_ptr + page * page_stride + (slot % PAGE_TOKENS).to(tl.int64) * slot_stride

    head = tl.arange(0, HEADS)[:, None]
    dim = tl.arange(0, DIM)[None, :]
    mask = (head < KV_HEADS) & (dim < HEAD_DIM)  # [heads, dim]
    row = token.to(tl.int64)
    k = tl.load(k_ptr + row * k_token_stride + head * k_head_stride + dim, mask=mask)
    v = tl.load(v_ptr + row * v_token_stride + head * v_head_stride + dim, mask=mask)
    tl.store(place + head * head_stride + dim, k.to(kv_ptr.dtype.element_ty), mask=mask)
    tl.store(place + value_stride + head * head_stride + dim, v.to(kv_ptr.dtype.element_ty), mask=mask)
