"""All layers of a decoder in one compiled call, for steps whose rows all decode; bfloat16.

In: weights and where the pages of each layer lie, once; per step the embedded tokens, where each row's keys and values
are, and the adapters' segments. Out: what the head takes. Each layer is computed by the kernels of ``launcher``, so
calling those one by one gives the same bits. What this adds: while a product is computed, the factors that come next
and the pages of the next layer are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from readapt_kernels.cpu.launcher import BadLayout, KvLayout
from readapt_kernels.cpu.library import BLOCK_TOKENS, load
from readapt_kernels.cpu.panels import Panels

ITEMS = ("products", "LoRA", "attention", "small")
"""What ``Stack.spent`` is told by."""

LINEARS = ("qkv", "o", "gate_up", "down")
_INPUTS = ("hidden", "x", "qkv", "mixed", "delta", "gate_up", "inner")


def _struct(*names: str) -> list[tuple[str, type[np.int64]]]:
    return [(name, np.int64) for name in names]


_PRODUCT = np.dtype(_struct("weight", "bias", "inputs", "outputs", "slices"))
_LAYER = np.dtype(
    [
        *_struct("input_norm", "post_attention_norm", "q_norm", "k_norm", "cos", "sin", "pages"),
        *((name, _PRODUCT) for name in LINEARS),
    ]
)
_MODEL = np.dtype(
    [
        *_struct("layers", "norm", "count", "hidden", "heads", "kv_heads", "dim", "block", "page_stride"),
        ("eps", np.float64),
        ("scale", np.float64),
    ]
)
_STEP = np.dtype(
    _struct(
        *_INPUTS,
        *("rows", "positions", "pages", "contexts", "tables", "segments", "bridge", "spent"),
        *("tokens", "table_width", "segment_count", "bridge_width"),
    )
)
"""These are the structs of stack.cpp, field by field."""


@dataclass(frozen=True, slots=True)
class Product:
    weight: Panels
    bias: Tensor | None
    slices: int
    """Modules that are fused in it."""


@dataclass(frozen=True, slots=True)
class StackLayer:
    """Norms ``[hidden]``; ``qk_norm`` and ``rotary`` as in ``CpuKernels.rotate_write``; the address of its pages."""

    input_norm: Tensor
    post_attention_norm: Tensor
    qk_norm: tuple[Tensor, Tensor] | None
    rotary: tuple[Tensor, Tensor] | None
    pages: int
    products: Mapping[str, Product]
    """By the names in LINEARS."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one query each: int64 ``[rows]``, tables int32 ``[rows, pages]``."""

    tokens: Tensor
    """Which token of the batch it is."""
    positions: Tensor
    pages: Tensor
    """Those that take the tokens' keys and values."""
    contexts: Tensor
    """How many tokens each sees, its own included."""
    tables: Tensor
    """The pages of those."""


class Stack:
    """See the module; raises BadLayout for what the kernels cannot read, and where no library can be had."""

    spent: np.ndarray | None = None
    """float64, by ITEMS: milliseconds of this thread are added to it."""

    def __init__(
        self, layers: Sequence[StackLayer], norm: Tensor, kv: KvLayout, eps: float, level: str | None = None
    ) -> None:
        library = load(level)
        if library is None:
            raise BadLayout("no kernels on this machine")
        _check(norm)
        self._run = library.readapt_stack_bf16
        self._held = (tuple(layers), norm)
        self._layers = np.array([_layer(layer) for layer in layers], dtype=_LAYER)
        sizes = (len(layers), len(norm), kv.heads, kv.kv_heads, kv.dim, BLOCK_TOKENS, kv.page_stride)
        self._model = np.array([(self._layers.ctypes.data, _address(norm), *sizes, eps, kv.dim**-0.5)], dtype=_MODEL)
        qkv, o, gate_up, down = (layers[0].products[name].weight for name in LINEARS)
        self._widths = (len(norm), qkv.outputs, o.inputs, len(norm), gate_up.outputs, down.inputs)
        self._workspace: list[Tensor] = []

    def run(self, hidden: Tensor, rows: Rows, segments: np.ndarray, bridge: Tensor) -> Tensor:
        """Embedded tokens ``[rows, hidden]``, overwritten -> what the head takes, valid until the next run.

        segments, bridge: as in ``CpuKernels.lora``, with factors of all layers and linears, three slices to each.
        """
        _check(hidden)
        x, *others = self._workspace_for(len(hidden))
        fields = (rows.tokens, rows.positions, rows.pages, rows.contexts, rows.tables)
        step = np.array(
            [
                (
                    *map(_address, (hidden, x, *others, *fields)),
                    *(segments.ctypes.data, _address(bridge), 0 if self.spent is None else self.spent.ctypes.data),
                    *(len(hidden), rows.tables.shape[1], len(segments), bridge.shape[1]),
                )
            ],
            dtype=_STEP,
        )
        self._run(self._model.ctypes.data, step.ctypes.data)
        return x[: len(hidden)]

    def _workspace_for(self, rows: int) -> list[Tensor]:
        if not self._workspace or len(self._workspace[0]) < rows:
            self._workspace = [torch.empty(rows, width, dtype=torch.bfloat16) for width in self._widths]
        return self._workspace


def _layer(layer: StackLayer) -> tuple[object, ...]:
    pairs = (layer.qk_norm or (None, None)) + (layer.rotary or (None, None))
    tensors = (layer.input_norm, layer.post_attention_norm, *pairs)
    products = [layer.products[name] for name in LINEARS]
    for tensor in (*tensors, *(product.bias for product in products)):
        if tensor is not None:
            _check(tensor)
    return (*map(_address, tensors), layer.pages, *map(_product, products))


def _product(product: Product) -> tuple[int, ...]:
    weight = product.weight
    return weight.address, _address(product.bias), weight.inputs, weight.outputs, product.slices


def _check(tensor: Tensor) -> None:
    if tensor.dtype is not torch.bfloat16 or not tensor.is_contiguous():
        raise BadLayout(f"{tensor.dtype} with strides {tensor.stride()} instead of contiguous bfloat16")


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
