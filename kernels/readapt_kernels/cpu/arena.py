"""Memory for what a step reads once (weights, pages), in pages of 2 MiB where the system gives them.

A core reads faster from such pages than from pages of 4 KiB; docs/cpu-budget.md has the measurement.
"""

from __future__ import annotations

import contextlib
import mmap

import torch
from torch import Tensor

_CHUNK = 32 << 20
_HUGE = 2 << 20
_ALIGNMENT = 64
"""A line of the cache, and a vector."""


class Arena:
    """Hands out pieces of large mappings; a mapping lives as long as one of its pieces."""

    def __init__(self) -> None:
        self._free = torch.empty(0, dtype=torch.uint8)

    def take(self, elements: int, dtype: torch.dtype) -> Tensor:
        """``[elements]``, zeros, at a multiple of 64 bytes."""
        size = elements * dtype.itemsize
        if len(self._free) < size:
            self._free = _map(max(size, _CHUNK))
        piece = self._free[:size].view(dtype)
        self._free = self._free[-(-size // _ALIGNMENT) * _ALIGNMENT :]
        return piece


def _map(size: int) -> Tensor:
    """At least ``size`` bytes from a multiple of 2 MiB on; what is never touched takes no memory."""
    # Python maps shared by default, and shared memory is given no huge pages.
    mapping = mmap.mmap(-1, size + _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # A kernel without huge pages refuses the advice; the memory is as good, only slower.
    with contextlib.suppress(OSError):
        mapping.madvise(mmap.MADV_HUGEPAGE)
    memory = torch.frombuffer(mapping, dtype=torch.uint8)
    return memory[-memory.data_ptr() % _HUGE :]
