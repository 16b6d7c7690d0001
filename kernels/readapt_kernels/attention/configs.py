"""Tiles by head size and element size: fixed tables, so that no step ever waits for tuning.

Chosen for sm_90 by what the compiler makes of them (registers, no spills, bytes in flight); each table's key is the
head size rounded up to a power of two and the bytes of an element.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton


@dataclass(frozen=True, slots=True)
class DecodeConfig:
    """One tile of keys, how it is pipelined, and how many programs share a multiprocessor."""

    block_n: int
    num_warps: int
    num_stages: int
    ctas_per_sm: int
    min_share: int
    """Blocks that a program takes at least: below this, joining partial results costs more than it saves."""


@dataclass(frozen=True, slots=True)
class PrefillConfig:
    """Rows of a query tile (tokens times the heads of a group), one tile of keys, and its pipeline."""

    rows: int
    block_n: int
    num_warps: int
    num_stages: int


_DECODE = {
    (32, 2): DecodeConfig(128, 4, 5, 2, 2),
    (64, 2): DecodeConfig(128, 4, 5, 2, 2),
    (128, 2): DecodeConfig(64, 4, 5, 2, 4),
    (256, 2): DecodeConfig(32, 4, 5, 2, 8),
    (32, 4): DecodeConfig(64, 4, 5, 2, 4),
    (64, 4): DecodeConfig(64, 4, 5, 2, 4),
    (128, 4): DecodeConfig(32, 4, 5, 2, 8),
    (256, 4): DecodeConfig(16, 4, 5, 2, 16),
}
# One stage: with the weights between the two products kept in registers, a product of wgmma that is still in flight
# while other work runs is miscompiled by assemblers before CUDA 13.3 (Triton carries 12.8 for Hopper). Unpipelined,
# each product is waited for at once, and several programs per multiprocessor cover one another's loads.
_PREFILL = {
    (32, 2): PrefillConfig(64, 64, 4, 1),
    (64, 2): PrefillConfig(64, 64, 4, 1),
    (128, 2): PrefillConfig(64, 64, 4, 1),
    (256, 2): PrefillConfig(128, 32, 8, 1),
    (32, 4): PrefillConfig(32, 32, 4, 1),
    (64, 4): PrefillConfig(32, 32, 4, 1),
    (128, 4): PrefillConfig(32, 16, 8, 1),
    (256, 4): PrefillConfig(32, 16, 8, 1),
}


def decode_config(dim: int, dtype: torch.dtype) -> DecodeConfig:
    """Raises ValueError for heads larger than 256 and dtypes that the table does not have."""
    return _DECODE[_key(dim, dtype)]


def prefill_config(dim: int, dtype: torch.dtype) -> PrefillConfig:
    """Raises ValueError for heads larger than 256 and dtypes that the table does not have."""
    return _PREFILL[_key(dim, dtype)]


def padded(dim: int) -> int:
    """The power of two that a head is computed with; Triton's dot wants at least 16."""
    return max(16, int(triton.next_power_of_2(dim)))


def _key(dim: int, dtype: torch.dtype) -> tuple[int, int]:
    key = (max(32, padded(dim)), dtype.itemsize)
    if dtype not in {torch.bfloat16, torch.float16, torch.float32} or key not in _DECODE:
        raise ValueError(f"no attention kernel for heads of {dim} {str(dtype).removeprefix('torch.')}")
    return key
