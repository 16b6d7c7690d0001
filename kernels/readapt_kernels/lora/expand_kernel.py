"""Expand: ``y[t, n] += scale · Σ_c bridge[t, c] · Bᵀ[c, n]`` for all slices of a fused linear, in place.

A persistent grid shares out ``items × column tiles``. A column tile lies in one slice; the slice's rank is only the
bound of a loop, and where it is zero (a module that the adapter lacks) y is not touched. The scale multiplies the
fp32 accumulator and y is rounded once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from readapt_kernels.lora.addresses import B_CHUNK, COLUMN, HEAD_WORDS, RANK, SCALE, SLICE_WORDS, chunk_address


@triton.jit(do_not_specialize=["layer", "linear_word"])
def expand_kernel(
    y_ptr,  # [tokens, sum of SIZES], in and out
    pool_ptr,  # [pages, layers, page elements]
    bridge_ptr,  # [max tokens, BRIDGE_WIDTH]
    count_ptr,  # int32: items of the batch
    items_ptr,  # int32 [max items, 4]: slot, unused, first token, tokens
    tables_ptr,  # int32 [slots, MAX_PAGES]
    layers_ptr,  # int32 [slots, NUM_LAYERS]: directory of the layer
    directories_ptr,  # int32 [directories, linears, words]
    layer: tl.int64,
    linear_word: tl.int64,  # where this linear's words begin in a directory
    y_stride: tl.int64,
    page_stride: tl.int64,
    layer_stride: tl.int64,
    STARTS: tl.constexpr,
    SIZES: tl.constexpr,
    TILES: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS_PER_PAGE: tl.constexpr,
    MAX_PAGES: tl.constexpr,
    NUM_LAYERS: tl.constexpr,
    BRIDGE_WIDTH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    PARTS: tl.constexpr = CHUNK // BLOCK_N
    units = tl.load(count_ptr) * TILES
    program, programs = tl.program_id(0), tl.num_programs(0)
    lanes_n = tl.arange(0, BLOCK_N)
    lanes_t = tl.arange(0, BLOCK_T)
    lanes_c = tl.arange(0, BLOCK_C)
    layer_ptr = pool_ptr + layer * layer_stride
    for unit in range(units * program // programs, units * (program + 1) // programs):
        item = unit // TILES
        n = unit % TILES * BLOCK_N
        slot = tl.load(items_ptr + item * 4)
        token = (tl.load(items_ptr + item * 4 + 2) + lanes_t).to(tl.int64)
        in_item = lanes_t < tl.load(items_ptr + item * 4 + 3)
        record_ptr = directories_ptr + tl.load(layers_ptr + slot * NUM_LAYERS + layer) + linear_word

        part = unit * 0
        tile = unit % TILES  # in its slice
        row_chunks = unit * 0 + SIZES[0] // CHUNK
        for s in tl.static_range(1, len(SIZES)):
            in_slice = unit % TILES >= STARTS[s] // BLOCK_N
            part = tl.where(in_slice, s, part)
            tile = tl.where(in_slice, unit % TILES - STARTS[s] // BLOCK_N, tile)
            row_chunks = tl.where(in_slice, SIZES[s] // CHUNK, row_chunks)
        slice_ptr = record_ptr + HEAD_WORDS + SLICE_WORDS * part
        table_ptr = tables_ptr + slot * MAX_PAGES
        rank = tl.load(slice_ptr + RANK)
        if rank > 0:
            y_at = y_ptr + token[:, None] * y_stride + (n + lanes_n)[None, :]
            y = tl.load(y_at, mask=in_item[:, None], other=0.0)
            # Columns start at multiples of 16 and dead ones are zero: whole vectors, no mask along the rank.
            first = tl.load(slice_ptr + COLUMN) // BLOCK_C * BLOCK_C
            b_chunk = tl.load(slice_ptr + B_CHUNK) + tile // PARTS
            sums = tl.full([BLOCK_T, BLOCK_N], 0.0, tl.float32)
            for r in range(0, rank, BLOCK_C):
                row = r + lanes_c
                live = row < rank
                chunk = b_chunk + row * row_chunks
                b_row = chunk_address(layer_ptr, table_ptr, chunk, live, page_stride, CHUNK, CHUNKS_PER_PAGE)
                b_t = tl.load(
                    b_row[:, None] + (tile % PARTS * BLOCK_N + lanes_n)[None, :], mask=live[:, None], other=0.0
                )
                bridge = tl.load(
                    bridge_ptr + token[:, None] * BRIDGE_WIDTH + (first + row)[None, :],
                    mask=in_item[:, None],
                    other=0.0,
                )
                sums = tl.dot(bridge, b_t, sums, input_precision=PRECISION)
            scale = tl.load(slice_ptr + SCALE).to(tl.float32, bitcast=True)
            tl.store(y_at, (y.to(tl.float32) + scale * sums).to(y_ptr.dtype.element_ty), mask=in_item[:, None])
