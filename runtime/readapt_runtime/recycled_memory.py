"""Memory for adapters, which are read and let go of again and again.

malloc keeps what is given back to it, in as many arenas as threads have used it: after 32 adapters of ranks 8 to 64 had
been registered that was 200 MiB beside 248 MiB of images. And a page that comes fresh from the system costs a fault:
5 ms for the 10 MB of an adapter of rank 16, twice what packing it takes. So regions are mapped by themselves, and those
that were let go of last serve again.
"""

from __future__ import annotations

import ctypes
import mmap
import weakref
from threading import RLock

import torch

_GRAIN = 1 << 18
_FIT = 1.25
"""How much larger a region may be than what it is taken for."""


class RecycledMemory:
    """Regions that are free are kept up to ``spare_bytes`` together; used from any thread."""

    def __init__(self, spare_bytes: int) -> None:
        self._spare_bytes = spare_bytes
        self._spare: list[mmap.mmap] = []
        self._lock = RLock()  # regions come back by finalizers, which may run while it is held

    def allocate(self, size: int) -> torch.Tensor:
        """``size`` bytes, uint8, whatever is in them; theirs until nothing refers to the tensor or a view of it."""
        if size == 0:
            return torch.empty(0, dtype=torch.uint8)
        region = self._take(size) or mmap.mmap(-1, _rounded(size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        owner = (ctypes.c_char * size).from_buffer(region)
        weakref.finalize(owner, self._give_back, region).atexit = False
        return torch.frombuffer(owner, dtype=torch.uint8)

    @property
    def spare_bytes(self) -> int:
        """Of regions that nobody uses."""
        return sum(map(len, tuple(self._spare)))

    def _take(self, size: int) -> mmap.mmap | None:
        with self._lock:
            fitting = [region for region in tuple(self._spare) if size <= len(region) <= _FIT * _rounded(size)]
            region = min(fitting, key=len, default=None)
            if region is not None:
                self._spare.remove(region)
            return region

    def _give_back(self, region: mmap.mmap) -> None:
        with self._lock:
            self._spare.append(region)
            while self.spare_bytes > self._spare_bytes:
                self._spare.pop(0)


def _rounded(size: int) -> int:
    return max(1, -(-size // _GRAIN)) * _GRAIN


ADAPTER_MEMORY = RecycledMemory(spare_bytes=24 << 20)
"""Enough for an adapter of 10 MB as it is read and as it is packed; larger ones pay for their pages each time."""
