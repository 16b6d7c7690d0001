"""Writing a safetensors file larger than memory.

In: what the file will hold, then its bytes in pieces. Out: the file, readable by all. The library wants every tensor
at once; an extraction has them one after the other.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from readapt_runtime.safe_tensors import ALIGNMENT, DTYPES, Checkpoint

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_PIECE = 1 << 22
"""Elements."""


class Entry(NamedTuple):
    """One tensor of a file to be written."""

    dtype: torch.dtype
    shape: tuple[int, ...]


def write_stream(path: Path, entries: Mapping[str, Entry], pieces: Iterable[torch.Tensor]) -> None:
    """Writes ``entries`` in their order; ``pieces`` are their elements, contiguous, in the same order, cut anywhere.

    Equal tensors give equal bytes. Raises ValueError when the pieces do not fill the entries, and what they raise.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in entries.items():
        begin, end = end, end + torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % ALIGNMENT)
    written = 0
    with path.open("wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        for piece in pieces:
            written += stream.write(piece.reshape(-1).view(torch.uint8).numpy().data)
    if written != end:
        raise ValueError(f"{path.name}: {written} bytes for tensors of {end}")
    path.chmod(0o644)


def copied(checkpoint: Checkpoint, names: Iterable[str]) -> tuple[dict[str, Entry], Iterator[torch.Tensor]]:
    """What ``write_stream`` takes to copy tensors of a checkpoint as they are."""
    entries = {name: Entry(checkpoint.infos[name].dtype, checkpoint.infos[name].shape) for name in names}
    return entries, (piece for name in entries for piece in _pieces(checkpoint, name))


def _pieces(checkpoint: Checkpoint, name: str) -> Iterator[torch.Tensor]:
    info = checkpoint.infos[name]
    for start in range(0, info.elements, _PIECE):
        piece = torch.empty(min(_PIECE, info.elements - start), dtype=info.dtype)
        checkpoint.read_block(name, start, piece)
        yield piece
