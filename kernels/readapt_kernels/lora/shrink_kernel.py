"""Shrink: ``bridge[t, c] = Σ_k x[t, k] · A[row(c), k]`` for every adapter of a mixed batch.

Bridge columns are the rank rows of a fused linear, each slice starting at a multiple of 16; the columns in between
have no row and are written as zero. A persistent grid shares out ``items × SPLITS`` units. Each split leaves an fp32
plane; the last to arrive at an item sums the planes in their order and rounds once, so the result does not depend on
who is last. Counters are zero at rest.
"""

from __future__ import annotations

import triton
import triton.language as tl

from readapt_kernels.lora.addresses import A_CHUNK, COLUMN, HEAD_WORDS, RANK, ROW, SLICE_WORDS, chunk_address


@triton.jit(do_not_specialize=["layer", "linear_word"])
def shrink_kernel(
    x_ptr,  # [tokens, IN]
    pool_ptr,  # [pages, layers, page elements]
    bridge_ptr,  # [max tokens, BRIDGE_WIDTH], out
    planes_ptr,  # fp32 [max items * SPLITS, BLOCK_T, BLOCK_C], scratch
    counters_ptr,  # int32 [max items], zero at rest
    count_ptr,  # int32: items of this linear
    items_ptr,  # int32 [max items, 4]: slot, first column, first token, tokens
    tables_ptr,  # int32 [slots, MAX_PAGES]
    layers_ptr,  # int32 [slots, NUM_LAYERS]: directory of the layer
    directories_ptr,  # int32 [directories, linears, words]
    layer: tl.int64,
    linear_word: tl.int64,  # where this linear's words begin in a directory
    x_stride: tl.int64,
    page_stride: tl.int64,
    layer_stride: tl.int64,
    IN: tl.constexpr,
    SLICES: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS_PER_PAGE: tl.constexpr,
    MAX_PAGES: tl.constexpr,
    NUM_LAYERS: tl.constexpr,
    BRIDGE_WIDTH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLITS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    BLOCKS: tl.constexpr = IN // BLOCK_K
    PER_SPLIT: tl.constexpr = (BLOCKS + SPLITS - 1) // SPLITS
    PARTS: tl.constexpr = CHUNK // BLOCK_K
    units = tl.load(count_ptr) * SPLITS
    program, programs = tl.program_id(0), tl.num_programs(0)
    lanes_k = tl.arange(0, BLOCK_K)
    lanes_t = tl.arange(0, BLOCK_T)
    lanes_c = tl.arange(0, BLOCK_C)
    layer_ptr = pool_ptr + layer * layer_stride
    for unit in range(units * program // programs, units * (program + 1) // programs):
        item = unit // SPLITS
        split = unit % SPLITS
        slot = tl.load(items_ptr + item * 4)
        column = tl.load(items_ptr + item * 4 + 1) + lanes_c
        token = tl.load(items_ptr + item * 4 + 2) + lanes_t
        in_item = lanes_t < tl.load(items_ptr + item * 4 + 3)
        record_ptr = directories_ptr + tl.load(layers_ptr + slot * NUM_LAYERS + layer) + linear_word

        row = column
        live = column < 0
        for s in tl.static_range(SLICES):
            slice_ptr = record_ptr + HEAD_WORDS + SLICE_WORDS * s
            inside = column - tl.load(slice_ptr + COLUMN)
            row = tl.where(inside >= 0, tl.load(slice_ptr + ROW) + inside, row)
            live = tl.where(inside >= 0, inside < tl.load(slice_ptr + RANK), live)
        row_chunk = tl.load(record_ptr + A_CHUNK) + row * (IN // CHUNK)  # [BLOCK_C]

        table_ptr = tables_ptr + slot * MAX_PAGES
        x_row = x_ptr + token.to(tl.int64) * x_stride  # [BLOCK_T]
        sums = tl.full([BLOCK_T, BLOCK_C], 0.0, tl.float32)
        for block in range(split * PER_SPLIT, min(split * PER_SPLIT + PER_SPLIT, BLOCKS)):
            chunk = row_chunk + block // PARTS
            a_row = chunk_address(layer_ptr, table_ptr, chunk, live, page_stride, CHUNK, CHUNKS_PER_PAGE)
            part = block % PARTS * BLOCK_K  # written so that the compiler sees a multiple of BLOCK_K
            a = tl.load(a_row[:, None] + (part + lanes_k)[None, :], mask=live[:, None], other=0.0)
            x = tl.load(x_row[:, None] + (block * BLOCK_K + lanes_k)[None, :], mask=in_item[:, None], other=0.0)
            sums = tl.dot(x, tl.trans(a), sums, input_precision=PRECISION)

        bridge = bridge_ptr + token.to(tl.int64)[:, None] * BRIDGE_WIDTH + column[None, :]
        if SPLITS == 1:
            tl.store(bridge, sums.to(bridge_ptr.dtype.element_ty), mask=in_item[:, None])
        else:
            planes = planes_ptr + item.to(tl.int64) * (SPLITS * BLOCK_T * BLOCK_C)
            planes += lanes_t[:, None] * BLOCK_C + lanes_c[None, :]
            tl.store(planes + split * (BLOCK_T * BLOCK_C), sums)
            # The scalar atomic is one thread's: its release covers the others' stores only behind a barrier.
            tl.debug_barrier()
            arrived = tl.atomic_add(counters_ptr + item, 1, sem="acq_rel", scope="gpu")
            if arrived == SPLITS - 1:
                # .cg reads L2: another SM wrote these lines, L1 may hold older ones.
                total = tl.load(planes, cache_modifier=".cg")
                for s in tl.static_range(1, SPLITS):
                    total += tl.load(planes + s * (BLOCK_T * BLOCK_C), cache_modifier=".cg")
                tl.store(bridge, total.to(bridge_ptr.dtype.element_ty), mask=in_item[:, None])
                tl.store(counters_ptr + item, 0)
