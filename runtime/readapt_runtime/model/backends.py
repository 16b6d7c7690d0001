"""Which implementations plan each batch anew: C++ kernels on a CPU that can have them, else plain torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from readapt_kernels.cpu import library
from readapt_runtime.engine.pool import PageOrder, PagePool
from readapt_runtime.model.attention import AttentionBackend, TorchAttention
from readapt_runtime.model.config import DecoderConfig
from readapt_runtime.model.cpu_attention import CpuAttention
from readapt_runtime.model.cpu_lora import CpuLora
from readapt_runtime.model.cpu_ops import CpuOps
from readapt_runtime.model.cpu_stack import CpuStack, fits
from readapt_runtime.model.lora import LoraBackend, TorchLora
from readapt_runtime.model.ops import Ops, TorchOps
from readapt_runtime.model.rotary import rotary_tables
from readapt_runtime.model.weights import DecoderWeights


@dataclass(frozen=True, slots=True)
class Backends:
    ops: Ops
    attention: AttentionBackend
    lora: LoraBackend
    stack: Callable[[DecoderWeights], CpuStack | None] = lambda _: None
    """All layers in one call, for steps that it can run; None where there is nothing of the kind."""


def has_kernels(config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the C++ kernels can compute this model here."""
    return (
        device.type == "cpu"
        and dtype in library.DTYPES
        and config.head_dim in library.HEAD_DIMS
        and config.num_heads // config.num_kv_heads <= library.MAX_GROUP
        and library.load() is not None
    )


def choose_ops(
    config: DecoderConfig, dtype: torch.dtype, device: torch.device, order: PageOrder = PageOrder.LAYER_MAJOR
) -> Ops:
    """Compiled ones on a CPU that can have them, to go with their attention over pages in ``order``; else torch's."""
    if order is PageOrder.LAYER_MAJOR and has_kernels(config, dtype, device):
        return CpuOps(config.rms_norm_eps, dtype)
    return TorchOps(config.rms_norm_eps)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What static buffers are sized for."""

    max_model_len: int = 2048
    max_batch_tokens: int = 2048
    max_running: int = 256
    max_rank: int = 64


def choose_backends(config: DecoderConfig, ops: Ops, pool: PagePool, bounds: Bounds) -> Backends:
    """Attention and LoRA to go with ``ops``, over ``pool``: compiled ones on a CPU that can have them, else torch.

    Raises UnsupportedModel where a sliding window would matter within the model length.
    """
    config.require_length(bounds.max_model_len)
    like = torch.empty(0, dtype=pool.dtype, device=pool.device)
    tables = rotary_tables(config.rotary, bounds.max_model_len, like)
    if isinstance(ops, CpuOps) and pool.order is PageOrder.LAYER_MAJOR:
        attention, lora = CpuAttention(config, pool, tables, ops.kernels), CpuLora(config, pool, ops.kernels)

        def stack(weights: DecoderWeights) -> CpuStack | None:
            return CpuStack(config, weights, attention, lora) if fits(weights) else None

        return Backends(ops, attention, lora, stack)
    return Backends(ops, TorchAttention(config, pool, tables), TorchLora(pool))
