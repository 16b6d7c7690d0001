"""The plans of both attention kernels, computed on the device from the context lengths of the step.

Decode: all blocks of keys of the step stand in one line, ordered by (sequence, KV head, block); with G programs,
program g takes the g-th stretch of ``share = max(ceil(total / G), least share)`` blocks. Work is even to within one
block whatever the lengths, and a stretch crosses from one sequence to the next where it has to.
Prefill: one item per tile of queries, each sequence's last (longest) tile first.

Per step these run once; the layers' launches read a few integers.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def plan_decode_kernel(
    count_ptr,  # int32 [1]
    context_ptr,  # int32 [max seqs]
    plan_ptr,  # int32 [2 + 2 * programs]: share, total, then (sequence, blocks into it) where each program starts
    max_seqs,
    programs,
    min_share,
    KV_HEADS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SEQS: tl.constexpr,  # power of two >= max_seqs
):
    program = tl.program_id(0)
    seq = tl.arange(0, SEQS)
    live = (seq < tl.load(count_ptr)) & (seq < max_seqs)
    context = tl.load(context_ptr + seq, mask=live, other=0)
    # an empty context counts as one block that is masked away: somebody has to write its zeros
    blocks = tl.where(live, tl.maximum(tl.cdiv(context, BLOCK_N), 1) * KV_HEADS, 0)  # [seqs]
    total = tl.sum(blocks, 0)
    share = tl.maximum(tl.cdiv(total, programs), min_share)

    before = tl.cumsum(blocks, 0) <= program * share  # sequences that end before this program's stretch
    tl.store(plan_ptr + 2 + 2 * program, tl.sum(before.to(tl.int32), 0))
    tl.store(plan_ptr + 3 + 2 * program, program * share - tl.sum(tl.where(before, blocks, 0), 0))
    if program == 0:
        tl.store(plan_ptr, share)
        tl.store(plan_ptr + 1, total)


@triton.jit
def plan_prefill_kernel(
    count_ptr,  # int32 [1]
    query_lens_ptr,  # int32 [max seqs]
    items_ptr,  # int32 [items, 2]: (sequence, tile), or (-1, 0) where there is nothing to do
    max_seqs,
    TILE_TOKENS: tl.constexpr,
    SEQS: tl.constexpr,  # power of two >= max_seqs
):
    item = tl.program_id(0)
    seq = tl.arange(0, SEQS)
    live = (seq < tl.load(count_ptr)) & (seq < max_seqs)
    tiles = tl.cdiv(tl.load(query_lens_ptr + seq, mask=live, other=0), TILE_TOKENS)  # [seqs]
    ends = tl.cumsum(tiles, 0)
    mine = (item < ends) & (item >= ends - tiles)  # true for one sequence at most
    found = tl.sum(mine.to(tl.int32), 0)
    tl.store(items_ptr + 2 * item, tl.sum(tl.where(mine, seq, 0), 0) + found - 1)
    tl.store(items_ptr + 2 * item + 1, tl.sum(tl.where(mine, ends - 1 - item, 0), 0))
