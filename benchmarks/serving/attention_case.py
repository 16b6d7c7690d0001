"""Our paged decode attention over a full stack of layers: right against fp64, then as work to capture.

The peers' attention kernels are not lifted: the yardstick is the bandwidth of a copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from readapt_kernels.attention.decode.launcher import DecodeWorkspace, paged_decode, plan_decode
from readapt_kernels.attention.operands import HeadShape, Sequences
from readapt_kernels.attention.reference import attend

PAGE_TOKENS = 16
_INTERPRETED_PROGRAMS = 4


@dataclass(frozen=True, slots=True)
class Contexts:
    """One sequence per number, in tokens."""

    name: str
    lengths: tuple[int, ...]


LLAMA_8B = HeadShape(heads=32, kv_heads=8, dim=128)
TIMED = (
    Contexts("32 × 2,048 tokens", (2048,) * 32),
    Contexts("31 × 1,024 and one of 32,768", (1024,) * 31 + (32768,)),
)
CHECKED = Contexts("ragged", (1, 40, 100))


class DecodeAttention:
    """One new token per sequence; every layer has keys and values of its own, pages lie in random order."""

    def __init__(
        self, contexts: Contexts, heads: HeadShape, layers: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._heads, self._layers = heads, layers
        lengths = contexts.lengths
        counts = [-(-length // PAGE_TOKENS) for length in lengths]
        generator = torch.Generator(device).manual_seed(0)
        new: dict[str, Any] = {"generator": generator, "device": device, "dtype": torch.float32}
        shape = (layers, 2, PAGE_TOKENS, heads.kv_heads, heads.dim)
        self._pool = torch.stack([torch.randn(*shape, **new).to(dtype) for _ in range(sum(counts))])
        self._q = torch.randn(len(lengths), heads.heads, heads.dim, **new).to(dtype)
        self.outputs = torch.full((layers, *self._q.shape), torch.nan, dtype=dtype, device=device)
        self._seqs = _sequences(lengths, counts, device)
        programs = None if device.type == "cuda" else _INTERPRETED_PROGRAMS
        self._workspace = DecodeWorkspace.allocate(heads, len(lengths), dtype, device, programs)
        self.bytes_read = sum(lengths) * layers * 2 * heads.kv_heads * heads.dim * dtype.itemsize

    def run(self) -> None:
        plan_decode(self._seqs, self._workspace)
        for layer in range(self._layers):
            kv, out = self._pool[:, layer], self.outputs[layer]
            paged_decode(self._q, kv, self._seqs, out, self._heads.dim**-0.5, self._workspace)

    def largest_error(self) -> float:
        """‖out - fp64‖ / ‖fp64‖ of the first and the last layer after ``run`` from poisoned memory."""
        for scratch in (self._workspace.acc, self._workspace.stats, self.outputs):
            scratch.fill_(torch.nan)
        self.run()
        errors = []
        for layer in (0, self._layers - 1):
            kv = self._pool[:, layer].double()
            expected = attend(self._q.double(), kv, self._seqs, self._heads.dim**-0.5)
            errors.append(float((self.outputs[layer].double() - expected).norm() / expected.norm()))
        return max(errors) if all(error == error for error in errors) else float("nan")


def _sequences(lengths: tuple[int, ...], counts: list[int], device: torch.device) -> Sequences:
    int32: dict[str, Any] = {"dtype": torch.int32, "device": device}
    order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(1)).tolist()
    table = torch.zeros(len(lengths), max(counts), dtype=torch.int32)
    for row, count in zip(table, counts, strict=True):
        row[:count] = torch.tensor(order[:count], dtype=torch.int32)
        order = order[count:]
    return Sequences(
        count=torch.tensor([len(lengths)], **int32),
        query_starts=torch.arange(len(lengths), **int32),
        query_lens=torch.ones(len(lengths), **int32),
        context_lens=torch.tensor(lengths, **int32),
        page_table=table.to(device),
    )
