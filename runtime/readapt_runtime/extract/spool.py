"""Factors on disk, from when they are computed until all ranks are known.

In: the factors of one module after the other. Out: their leading directions, of any of them, in any order. A budget
over all modules is decided when the last one has been seen, and by then the factors of a large model would fill more
memory than its largest tensor.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import torch

from readapt_runtime.lowrank import LowRank


class Spool:
    """Float32 factors in ``file``; directions are rows on both sides, so that the leading ones are a prefix."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._places: dict[str, tuple[int, int, int, int]] = {}  # first byte, rank, in, out

    def put(self, name: str, factors: LowRank) -> None:
        right, left = factors.right.cpu().contiguous(), factors.left.T.cpu().contiguous()
        self._places[name] = (self._file.seek(0, 2), factors.rank, right.shape[1], left.shape[1])
        for rows in (right, left):
            self._file.write(rows.numpy().data)

    def get(self, name: str, rank: int) -> LowRank:
        """The ``rank`` leading directions of a module."""
        start, kept, into, out = self._places[name]
        if not 0 < rank <= kept:
            raise ValueError(f"{name} has {kept} directions, not {rank}")
        right = self._rows(start, rank, into)
        left = self._rows(start + 4 * kept * into, rank, out)
        return LowRank(left.T.contiguous(), right)

    def _rows(self, start: int, count: int, width: int) -> torch.Tensor:
        self._file.seek(start)
        content = bytearray(self._file.read(4 * count * width))
        return torch.frombuffer(content, dtype=torch.float32).view(count, width)


@contextmanager
def open_spool(folder: Path) -> Iterator[Spool]:
    """In a nameless file in ``folder`` that nobody else sees and that is gone with the process."""
    with tempfile.TemporaryFile(dir=folder) as file:
        yield Spool(file)
