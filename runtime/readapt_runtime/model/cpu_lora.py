"""LoRA on a CPU: all adapters of a step in one call per fused linear, reading their rank rows where they lie."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import numpy as np
import torch

from readapt_kernels.cpu import library
from readapt_kernels.cpu.launcher import CpuKernels
from readapt_runtime.engine.core import Batch, ResidentAdapter
from readapt_runtime.engine.pool import PagePool
from readapt_runtime.model.config import DecoderConfig, Linear
from readapt_runtime.model.lora import TorchLora

_LONG = 64
"""Tokens of one adapter from which on a matrix product of the library is the faster one."""


class CpuLora:
    """See ``LoraBackend``."""

    def __init__(self, config: DecoderConfig, pool: PagePool, kernels: CpuKernels) -> None:
        self._kernels = kernels
        self._pool = pool
        self._long = TorchLora(pool)
        self._layers = config.num_layers
        self._linears = {linear: index for index, linear in enumerate(config.linears)}
        self._slices = {linear: len(fused.slices) for linear, fused in config.linears.items()}
        self._factors: WeakKeyDictionary[ResidentAdapter, tuple[np.ndarray, tuple[torch.Tensor, ...]]] = (
            WeakKeyDictionary()
        )
        self.segments = np.empty(0, dtype=library.SEGMENT)
        """Those of the step that the kernel computes."""
        self.bridge = torch.empty(0, 0)
        self.has_long = False
        """Whether the step has others."""

    def plan(self, batch: Batch) -> None:
        short = [s for s in batch.segments if s.stop - s.start < _LONG]
        self._long.take([s for s in batch.segments if s.stop - s.start >= _LONG])
        self.has_long = len(short) < len(batch.segments)
        found = [(self._factors_of(s.adapter)[0].ctypes.data, s.start, s.stop) for s in short]
        self.segments = np.array(found, dtype=library.SEGMENT)
        width = library.SLICES * max((s.adapter.variant.image.rank for s in short), default=0)
        if self.bridge.shape[0] < len(batch.token_ids) or self.bridge.shape[1] < width:
            self.bridge = torch.empty(len(batch.token_ids), width, dtype=torch.float32)

    def begin(self, layer: int, linear: Linear, x: torch.Tensor) -> None:
        pass

    def run(self, layer: int, linear: Linear, x: torch.Tensor, y: torch.Tensor) -> None:
        self._long.run(layer, linear, x, y)
        if not len(self.segments):
            return
        offset = (layer * len(self._linears) + self._linears[linear]) * library.SLICES
        self._kernels.lora(self.segments, self._slices[linear], offset, x, y, self.bridge)

    def _factors_of(self, adapter: ResidentAdapter) -> tuple[np.ndarray, tuple[torch.Tensor, ...]]:
        """Where the adapter's rank rows are; made once per stay in the pool.

        An adapter whose pages are not neighbours is read from a copy, for as long as it stays.
        """
        found = self._factors.get(adapter)
        if found is None:
            flat = adapter.flat or tuple(self._pool.flat(adapter.entry, layer) for layer in range(self._layers))
            found = self._factors[adapter] = self._describe(adapter, flat), flat
        return found

    def _describe(self, adapter: ResidentAdapter, flat: tuple[torch.Tensor, ...]) -> np.ndarray:
        size = self._pool.dtype.itemsize
        table = np.zeros((self._layers, len(self._linears), library.SLICES), dtype=library.FACTORS)
        for layer, directory in enumerate(adapter.variant.image.layers):
            start = flat[layer].data_ptr()
            for linear, factors in directory.items():
                for index, part in enumerate(factors.slices):
                    a = start + (factors.a_offset + part.rank_start * factors.in_features) * size
                    table[layer, self._linears[linear], index] = (
                        *(a, start + part.b_offset * size, part.rank, part.rank_start),
                        *(part.out_start, part.out_size, part.scale),
                    )
        return table
