"""Readapt's engine over a base and PEFT folders, as ``readapt serve`` builds it; for the runner and for the gate."""

from __future__ import annotations

from pathlib import Path

import torch

from readapt_runtime.engine.core import Variant
from readapt_runtime.engine.engine import Engine
from readapt_runtime.engine.limits import EngineLimits
from readapt_runtime.engine.pool import PageLayout, PagePool
from readapt_runtime.lora_format import read_adapter
from readapt_runtime.model.adapter_image import pack_adapter
from readapt_runtime.model.backends import Bounds, choose_ops
from readapt_runtime.model.config import read_config
from readapt_runtime.model.decoders import choose_decoder
from readapt_runtime.model.weights import load_weights

_POOL_BYTES = 1536 << 20
CPU = torch.device("cpu")


def build(
    base: Path, adapters: list[Path], dtype: torch.dtype, device: torch.device = CPU
) -> tuple[Engine, list[Variant]]:
    """The engine, and one variant per folder."""
    config = read_config(base)
    ops = choose_ops(config, dtype, device)
    weights = load_weights(base, config, dtype, device, ops)
    pool = PagePool(PageLayout.of(config), _POOL_BYTES, dtype, device)
    engine = Engine(choose_decoder(config, weights, ops, pool, Bounds()), pool, EngineLimits())
    variants = []
    for folder in adapters:
        modules = read_adapter(folder, config.module_shapes).modules
        image = pack_adapter(modules, config, pool.layout.elements, dtype)
        variants.append(Variant(folder.name, f"sha256:{'0' * 64}", image))
    return engine, variants
