"""Paged decode attention, split over the context by a fixed number of programs.

``out = Σ_c exp(scale·q·k_c) v_c / Σ_c exp(scale·q·k_c)``, one query per sequence, the query heads of one KV head
together as rows of one tile. Each program walks its stretch of the plan (``plan/kernel.py``). A (sequence, KV head)
that lies within one stretch is finished there. One that several stretches share is left in pieces ``(m, l, acc)``: the
largest score, the sum of weights, the weighted sum of values. The program whose piece arrives last joins all of them in
their order in the context, so that the result does not depend on who was last. No atomics on floats, nothing to be
zeroed before.

Order between programs: plane stores, CTA barrier, acquire-release ticket at GPU scope, CTA-uniform branch, loads past
L1.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _joined(
    acc_ptr,
    stats_ptr,
    first_slot,  # slots of a program: 0 the piece that begins its stretch, 1 the piece that ends it
    late,  # 1 when the first piece does not begin its stretch
    pieces,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    DIM: tl.constexpr,
):
    """(acc, l) of all pieces, summed in their order in the context."""
    row = tl.arange(0, ROWS)
    dim = tl.arange(0, DIM)
    in_group = row < GROUP
    in_tile = in_group[:, None] & (dim < HEAD_DIM)[None, :]  # [rows, dim]
    m = tl.full([ROWS], -3.0e38, tl.float32)
    l = tl.zeros([ROWS], tl.float32)  # noqa: E741
    acc = tl.zeros([ROWS, DIM], tl.float32)
    for piece in tl.range(0, pieces, loop_unroll_factor=4):  # loads of four in flight
        slot = first_slot + 2 * piece + tl.where(piece == 0, late, 0)
        plane = acc_ptr + slot * GROUP * HEAD_DIM + row[:, None] * HEAD_DIM + dim[None, :]
        stats = stats_ptr + slot * 2 * GROUP + row
        part = tl.load(plane, mask=in_tile, other=0.0, cache_modifier=".cg")  # [rows, dim]
        part_m = tl.load(stats, mask=in_group, other=0.0, cache_modifier=".cg")
        part_l = tl.load(stats + GROUP, mask=in_group, other=0.0, cache_modifier=".cg")
        top = tl.maximum(m, part_m)
        fade = tl.exp2(m - top)
        grow = tl.exp2(part_m - top)
        l = l * fade + part_l * grow  # noqa: E741
        acc = acc * fade[:, None] + part * grow[:, None]
        m = top
    return acc, l


@triton.jit
def decode_kernel(
    q_ptr,  # [tokens, heads, dim]
    kv_ptr,  # [pages, 2, page tokens, kv heads, dim]
    out_ptr,  # [tokens, heads, dim]
    query_starts_ptr,  # int32 [max seqs]
    context_ptr,  # int32 [max seqs]
    table_ptr,  # int32 [max seqs, max pages]
    plan_ptr,  # int32 [2 + 2 * programs]
    acc_ptr,  # fp32 [programs, 2, group, dim]: a stretch leaves at most its first and its last piece
    stats_ptr,  # fp32 [programs, 2, 2, group]: m and l
    tickets_ptr,  # int32 [max seqs, kv heads], zero between launches
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
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    ROWS: tl.constexpr,  # power of two >= GROUP, at least 16
    DIM: tl.constexpr,  # power of two >= HEAD_DIM, at least 16
    BLOCK_N: tl.constexpr,
):
    program = tl.program_id(0)
    share = tl.load(plan_ptr)
    position = program * share
    end = tl.minimum(position + share, tl.load(plan_ptr + 1))
    seq = tl.load(plan_ptr + 2 + 2 * program)
    offset = tl.load(plan_ptr + 3 + 2 * program)  # blocks into the sequence, all heads of it

    row = tl.arange(0, ROWS)  # query heads of one KV head
    dim = tl.arange(0, DIM)
    in_group = row < GROUP
    in_dim = dim < HEAD_DIM
    in_tile = in_group[:, None] & in_dim[None, :]  # [rows, dim]
    plane = row[:, None] * HEAD_DIM + dim[None, :]  # [rows, dim]

    while position < end:
        context = tl.load(context_ptr + seq)
        blocks = tl.maximum(tl.cdiv(context, BLOCK_N), 1)
        head = offset // blocks
        first = offset - head * blocks
        some = tl.minimum(blocks - first, end - position)

        token = tl.load(query_starts_ptr + seq).to(tl.int64)
        heads = head * GROUP + row
        q_rows = q_ptr + token * q_token_stride + heads[:, None] * q_head_stride
        q = tl.load(q_rows + dim[None, :], mask=in_tile, other=0.0)  # [rows, dim]
        table = table_ptr + seq.to(tl.int64) * table_stride
        keys_ptr = kv_ptr + head * head_stride + dim[None, :]

        # finite, so that a block without any key leaves m, l and acc as they are
        m = tl.full([ROWS], -3.0e38, tl.float32)
        weights = tl.zeros([ROWS, BLOCK_N], tl.float32)  # summed over the block at the end: no exchange between warps
        acc = tl.zeros([ROWS, DIM], tl.float32)
        for block in tl.range(first, first + some):
            key = block * BLOCK_N + tl.arange(0, BLOCK_N)
            seen = key < context
            page = tl.load(table + key // PAGE_TOKENS, mask=seen, other=0).to(tl.int64)
            place = page * page_stride + (key % PAGE_TOKENS).to(tl.int64) * slot_stride  # [block]
            mask = seen[:, None] & in_dim[None, :]
            # masked lanes are selected to zero: what lies beyond the context may be NaN
            k = tl.load(keys_ptr + place[:, None], mask=mask, other=0.0)  # [block, dim]
            v = tl.load(keys_ptr + value_stride + place[:, None], mask=mask, other=0.0)
            score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2  # [rows, block]
            score = tl.where(seen[None, :], score, float("-inf"))
            top = tl.maximum(m, tl.max(score, 1))
            weight = tl.exp2(score - top[:, None])
            fade = tl.exp2(m - top)
            weights = weights * fade[:, None] + weight
            acc = tl.dot(weight.to(v.dtype), v, acc * fade[:, None], input_precision="ieee")
            m = top
        l = tl.sum(weights, 1)  # noqa: E741

        start = position - first  # where the blocks of this (sequence, head) begin in the line
        first_program = start // share
        pieces = (start + blocks - 1) // share - first_program + 1
        complete = pieces == 1
        if pieces > 1:
            slot = 2 * program + (position > program * share).to(tl.int32)
            stats = stats_ptr + slot * 2 * GROUP + row
            tl.store(acc_ptr + slot * GROUP * HEAD_DIM + plane, acc, mask=in_tile)
            tl.store(stats, m, mask=in_group)
            tl.store(stats + GROUP, l, mask=in_group)
            tl.debug_barrier()
            ticket = tickets_ptr + seq * KV_HEADS + head
            complete = tl.atomic_add(ticket, 1, sem="acq_rel", scope="gpu") == pieces - 1
            if complete:
                # only the first piece can be the last one of its program
                late = (start > first_program * share).to(tl.int32)
                acc, l = _joined(  # noqa: E741
                    acc_ptr, stats_ptr, 2 * first_program, late, pieces, GROUP, HEAD_DIM, ROWS, DIM
                )
                tl.store(ticket, 0)
        if complete:
            # no key at all: zeros
            result = acc / tl.where(l == 0.0, 1.0, l)[:, None]
            out_rows = out_ptr + token * out_token_stride + heads[:, None] * out_head_stride
            tl.store(out_rows + dim[None, :], result.to(out_ptr.dtype.element_ty), mask=in_tile)

        position += some
        offset += some
        if offset == blocks * KV_HEADS:
            seq += 1
            offset = 0
