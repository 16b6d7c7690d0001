"""Paged prefill attention: one program per tile of queries and KV head.

``out[t] = Σ_{c ≤ p(t)} softmax(scale·q[t]·k_c) v_c``, p(t) the position of token t in its sequence: earlier context and
the chunk itself are both read from the pages. A tile's rows are (token, query head of the group), so that the heads of
a group share every load of keys and values. Blocks of keys that all rows see come first and need no mask; the last
ones, around the diagonal, are masked. Rows never meet: a query's result depends on its own sequence only.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def prefill_kernel(
    q_ptr,  # [tokens, heads, dim]
    kv_ptr,  # [pages, 2, page tokens, kv heads, dim]
    out_ptr,  # [tokens, heads, dim]
    query_starts_ptr,  # int32 [max seqs]
    query_lens_ptr,  # int32 [max seqs]
    context_ptr,  # int32 [max seqs]
    table_ptr,  # int32 [max seqs, max pages]
    items_ptr,  # int32 [items, 2]: (sequence or -1, tile)
    scale_log2,
    q_token_stride,
    q_head_stride,
    out_token_stride,
    out_head_stride,
    page_stride,
    value_stride,
    slot_stride,
    head_stride,
    table_stride,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    TILE_TOKENS: tl.constexpr,  # ROWS // GROUP
    ROWS: tl.constexpr,
    DIM: tl.constexpr,  # power of two >= HEAD_DIM, at least 16
    BLOCK_N: tl.constexpr,
):
    head = tl.program_id(0)
    item = tl.program_id(1)
    seq = tl.load(items_ptr + 2 * item)
    if seq < 0:
        return
    begin = tl.load(items_ptr + 2 * item + 1) * TILE_TOKENS  # first token of the tile in the chunk
    new = tl.load(query_lens_ptr + seq)
    earlier = tl.load(context_ptr + seq) - new  # context before the chunk

    row = tl.arange(0, ROWS)
    token = begin + row // GROUP
    live = (row < TILE_TOKENS * GROUP) & (token < new)
    last_seen = earlier + token  # [rows]: the position of the query
    heads = head * GROUP + row % GROUP
    dim = tl.arange(0, DIM)
    in_dim = dim < HEAD_DIM
    in_tile = live[:, None] & in_dim[None, :]  # [rows, dim]
    at = (tl.load(query_starts_ptr + seq) + token).to(tl.int64)
    q_rows = q_ptr + at[:, None] * q_token_stride + heads[:, None] * q_head_stride
    q = tl.load(q_rows + dim[None, :], mask=in_tile, other=0.0)  # [rows, dim]
    table = table_ptr + seq.to(tl.int64) * table_stride
    keys_ptr = kv_ptr + head * head_stride + dim[None, :]

    stop = earlier + tl.minimum(begin + TILE_TOKENS, new)  # keys that the tile's last query sees
    whole = (earlier + begin + 1) // BLOCK_N  # blocks that its first query sees entirely
    m = tl.full([ROWS], -3.0e38, tl.float32)
    l = tl.zeros([ROWS], tl.float32)  # noqa: E741
    acc = tl.zeros([ROWS, DIM], tl.float32)
    for masked in tl.static_range(0, 2):
        for block in tl.range(whole if masked else 0, tl.cdiv(stop, BLOCK_N) if masked else whole):
            key = block * BLOCK_N + tl.arange(0, BLOCK_N)
            if masked:
                inside = key < stop
                page = tl.load(table + key // PAGE_TOKENS, mask=inside, other=0).to(tl.int64)
                mask = inside[:, None] & in_dim[None, :]
            else:
                page = tl.load(table + key // PAGE_TOKENS).to(tl.int64)
                mask = in_dim[None, :]
            place = page * page_stride + (key % PAGE_TOKENS).to(tl.int64) * slot_stride  # [block]
            # masked lanes are selected to zero: what lies beyond the context may be NaN
            k = tl.load(keys_ptr + place[:, None], mask=mask, other=0.0)  # [block, dim]
            v = tl.load(keys_ptr + value_stride + place[:, None], mask=mask, other=0.0)
            score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2  # [rows, block]
            if masked:
                score = tl.where(key[None, :] <= last_seen[:, None], score, float("-inf"))
            top = tl.maximum(m, tl.max(score, 1))
            weight = tl.exp2(score - top[:, None])
            fade = tl.exp2(m - top)
            l = l * fade + tl.sum(weight, 1)  # noqa: E741
            acc = tl.dot(weight.to(v.dtype), v, acc * fade[:, None], input_precision="ieee")
            m = top

    result = acc / tl.where(l == 0.0, 1.0, l)[:, None]
    out_rows = out_ptr + at[:, None] * out_token_stride + heads[:, None] * out_head_stride
    tl.store(out_rows + dim[None, :], result.to(out_ptr.dtype.element_ty), mask=in_tile)
