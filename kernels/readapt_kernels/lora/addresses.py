"""Where things lie, for both kernels: a chunk of a rank row in the pool, and the words of an adapter's record.

``address(chunk) = pool + table[chunk // chunks per page] · page stride + (chunk mod chunks per page) · CHUNK``

The product is in 64 bits: a pool of a large GPU has more than 2³¹ elements. CHUNK and the strides are multiples of
16, so the compiler knows that addresses are aligned and copies 16 bytes at a time; a table of pointers would hide that.
"""

from __future__ import annotations

import triton
import triton.language as tl

from readapt_kernels.lora import records

A_CHUNK = tl.constexpr(records.A_CHUNK)
HEAD_WORDS = tl.constexpr(records.HEAD_WORDS)
SLICE_WORDS = tl.constexpr(records.SLICE_WORDS)
ROW = tl.constexpr(records.ROW)
RANK = tl.constexpr(records.RANK)
COLUMN = tl.constexpr(records.COLUMN)
B_CHUNK = tl.constexpr(records.B_CHUNK)
SCALE = tl.constexpr(records.SCALE)


@triton.jit
def chunk_address(pool_ptr, table_ptr, chunk, live, page_stride, CHUNK: tl.constexpr, CHUNKS_PER_PAGE: tl.constexpr):
    """Pointers to the first element of each chunk; where ``live`` is false the table is not read."""
    page = tl.load(table_ptr + chunk // CHUNKS_PER_PAGE, mask=live, other=0)
    return pool_ptr + (page.to(tl.int64) * page_stride + (chunk % CHUNKS_PER_PAGE) * CHUNK)
