"""The compiled kernels as functions of tensors: contiguous, on the CPU, all in the dtype of the launcher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from readapt_kernels.cpu.library import BLOCK_TOKENS, DTYPES, HEAD_DIMS, MAX_GROUP, load
from readapt_kernels.cpu.panels import Panels


class BadLayout(ValueError):
    """Tensors that the kernels cannot read."""


@dataclass(frozen=True, slots=True)
class KvLayout:
    """How queries, keys and values lie; strides in elements.

    A KV page of one layer holds, per KV head, keys ``[dim, 16 tokens]``; behind those of all heads, values
    ``[16 tokens, dim]``.
    """

    heads: int
    kv_heads: int
    dim: int
    page_stride: int

    def __post_init__(self) -> None:
        if self.dim not in HEAD_DIMS or self.heads % self.kv_heads or self.heads // self.kv_heads > MAX_GROUP:
            raise BadLayout(f"no kernel for {self.heads} heads over {self.kv_heads} of {self.dim} elements")

    @property
    def qkv_width(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.dim


class CpuKernels:
    """One instance per dtype; raises BadLayout for a dtype without kernels, and where no library can be had."""

    def __init__(self, dtype: torch.dtype, level: str | None = None) -> None:
        library = load(level) if dtype in DTYPES else None
        if library is None:
            raise BadLayout(f"no kernels for {dtype} on this machine")
        self._dtype = dtype

        def function(name: str) -> Any:
            return getattr(library, f"readapt_{name}_{DTYPES[dtype]}")

        self._add_norm, self._silu_mul, self._argmax = map(function, ("add_norm", "silu_mul", "argmax"))
        self._rotate_write, self._attend, self._lora = map(function, ("rotate_write", "attend", "lora"))
        self._draw = function("draw")
        self._linear = library.readapt_linear_bf16

    def _check(self, *tensors: Tensor) -> None:
        for tensor in tensors:
            if tensor.dtype is not self._dtype or not tensor.is_contiguous():
                raise BadLayout(f"{tensor.dtype} with strides {tensor.stride()} instead of contiguous {self._dtype}")

    def add_norm(self, hidden: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        """``hidden += delta``, and ``hidden / sqrt(mean(hidden²) + eps) · weight``: hidden ``[tokens, width]``."""
        self._check(hidden, weight, *(() if delta is None else (delta,)))
        out = torch.empty_like(hidden)
        tokens, width = hidden.shape
        added = None if delta is None else delta.data_ptr()
        self._add_norm(hidden.data_ptr(), added, weight.data_ptr(), out.data_ptr(), tokens, width, eps)
        return out

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """``silu(gate) · up``: ``[tokens, 2 inner]`` -> ``[tokens, inner]``."""
        self._check(gate_up)
        tokens, inner = gate_up.shape[0], gate_up.shape[1] // 2
        out = gate_up.new_empty(tokens, inner)
        self._silu_mul(gate_up.data_ptr(), out.data_ptr(), tokens, inner)
        return out

    def greedy(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Of logits ``[rows, vocab]`` the first largest (int64) and whether all are finite (bool)."""
        self._check(logits)
        rows, vocab = logits.shape
        best, finite = torch.empty(2, rows, dtype=torch.int64)
        self._argmax(logits.data_ptr(), rows, vocab, best.data_ptr(), finite.data_ptr())
        return best, finite.bool()

    def draw(
        self, logits: Tensor, best: Tensor, rows: Tensor, temperature: Tensor, top_p: Tensor, point: Tensor
    ) -> Tensor:
        """For each of ``rows`` a token of softmax(logits / temperature) cut at top_p, int64 ``[drawn rows]``.

        The first at which the mass kept, added up in the order of the vocabulary, is above ``point`` of it. A row's
        result does not depend on the others; it is some token where the row is not finite.

        logits ``[rows, vocab]`` with the first largest of each, ``best`` int64 ``[rows]``; int64 ``rows`` and float32
        ``temperature`` above 0, ``top_p``, ``point`` in [0, 1): ``[drawn rows]``.
        """
        self._check(logits)
        drawn = torch.empty_like(rows)
        self._draw(
            *(logits.data_ptr(), logits.shape[1], rows.data_ptr(), len(rows), best.data_ptr()),
            *(temperature.data_ptr(), top_p.data_ptr(), point.data_ptr(), drawn.data_ptr()),
        )
        return drawn

    def rotate_write(
        self,
        qkv: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        positions: Tensor,
        pages: Tensor,
        pool: int,
        kv: KvLayout,
        norm: tuple[Tensor, Tensor] | None = None,
        eps: float = 0.0,
    ) -> None:
        """Norms and rotates queries and keys of ``[tokens, qkv width]`` in place, writes keys and values into pages.

        rotary: cos and sin ``[positions, dim]``, None for layers without; norm: weights of the heads of queries and
        keys ``[dim]``; positions and pages int64 ``[tokens]``; pool: address of the layer.
        """
        self._check(qkv)
        head = kv.dim * BLOCK_TOKENS
        self._rotate_write(
            *(qkv.data_ptr(), qkv.shape[0], kv.heads, kv.kv_heads, kv.dim),
            *(*_addresses(rotary), positions.data_ptr(), pages.data_ptr()),
            *(BLOCK_TOKENS, pool, kv.page_stride, kv.kv_heads * head, head, *_addresses(norm), eps),
        )

    def attend(
        self, qkv: Tensor, out: Tensor, tokens: Tensor, tables: Tensor, contexts: Tensor, pool: int, kv: KvLayout
    ) -> None:
        """``softmax(q Kᵀ / √dim) V`` of the rows ``tokens`` (int64 ``[rows]``) of qkv into the same rows of out.

        tables int32 ``[rows, pages]``; contexts int64 ``[rows]``: how many tokens each sees, its own included.
        """
        self._check(qkv, out)
        head = kv.dim * BLOCK_TOKENS
        self._attend(
            *(qkv.data_ptr(), kv.qkv_width, out.data_ptr(), tokens.data_ptr(), len(tokens)),
            *(kv.heads, kv.kv_heads, kv.dim, pool, tables.data_ptr(), tables.shape[1]),
            *(contexts.data_ptr(), kv.page_stride, kv.kv_heads * head, head, kv.dim**-0.5),
        )

    def linear(self, x: Tensor, weight: Panels, bias: Tensor | None) -> Tensor:
        """``x Wᵀ + bias`` in bfloat16: ``[tokens, inputs]`` -> ``[tokens, outputs]``, sums in float32.

        A row's result does not depend on the other rows.
        """
        self._check(x, *(() if bias is None else (bias,)))
        tokens, inputs = x.shape
        if self._dtype is not torch.bfloat16 or inputs != weight.inputs:
            raise BadLayout(f"{self._dtype} rows of {inputs} for a bfloat16 weight of {weight.inputs} inputs")
        out = x.new_empty(tokens, weight.outputs)
        added = None if bias is None else bias.data_ptr()
        self._linear(x.data_ptr(), tokens, inputs, weight.address, weight.outputs, added, out.data_ptr())
        return out

    def lora(self, segments: np.ndarray, slices: int, offset: int, x: Tensor, y: Tensor, bridge: Tensor) -> None:
        """``y += scale · (x Aᵀ) B`` for every segment, in place; the bridge is rounded to the dtype.

        segments: ``library.SEGMENT``; offset: of the slices of this layer and linear in each segment's factors;
        bridge: float32 workspace ``[tokens, ranks of all slices]``.
        """
        self._check(x, y)
        self._lora(
            *(segments.ctypes.data, len(segments), slices, offset, x.data_ptr(), x.shape[1]),
            *(y.data_ptr(), y.shape[1], bridge.data_ptr(), bridge.shape[1]),
        )


def _addresses(pair: tuple[Tensor, Tensor] | None) -> tuple[int | None, int | None]:
    return (None, None) if pair is None else (pair[0].data_ptr(), pair[1].data_ptr())
