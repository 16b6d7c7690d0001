"""Adapters of random weights on all linear modules, as PEFT folders; many of them on little disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch

from readapt_api.artifacts import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from readapt_runtime.lora_format import LoraAdapter, LoraModule, base_shapes, write_adapter

RANKS = (8, 16, 32, 64)
_DISTINCT_WEIGHTS = 8
"""Files that many adapters share by hard links: each adapter is read and hashed in full all the same."""


def write_mixed(base: Path, root: Path, count: int, ranks: tuple[int, ...] = RANKS) -> dict[str, Path]:
    """``count`` adapters, all weights distinct, ranks in turn; by name."""
    return {
        f"r{ranks[k % len(ranks)]}-{k}": write_random(base, root / f"mixed-{k}", ranks[k % len(ranks)], seed=k)
        for k in range(count)
    }


def write_many(base: Path, root: Path, count: int, rank: int = 8) -> dict[str, Path]:
    """``count`` adapters with distinct digests: few weights files, configs that differ in alpha."""
    seeds = [write_random(base, root / f"many-{k}", rank, seed=1000 + k) for k in range(min(count, _DISTINCT_WEIGHTS))]
    clones = (_clone(seeds[k % len(seeds)], root / f"many-{k}", rank + k / 1024) for k in range(len(seeds), count))
    return {folder.name: folder for folder in (*seeds, *clones)}


def write_random(base: Path, folder: Path, rank: int, seed: int) -> Path:
    """One adapter in bfloat16; its update of a weight is about as large as those of trained adapters."""
    generator = torch.Generator().manual_seed(seed)
    modules = {module.name: module for module in _modules(base, rank, generator)}
    write_adapter(folder, LoraAdapter(modules), base.name)
    _change(folder, target_modules=sorted({name.rpartition(".")[2] for name in modules}))  # as PEFT's users write them
    return folder


def _modules(base: Path, rank: int, generator: torch.Generator) -> Iterator[LoraModule]:
    for name, shape in base_shapes(base).items():
        a = torch.randn(rank, shape.into, generator=generator) / shape.into**0.5
        b = torch.randn(shape.out, rank, generator=generator) * 0.3 / rank**0.5
        yield LoraModule(name, a.bfloat16(), b.bfloat16(), scale=1.0)


def _clone(source: Path, folder: Path, alpha: float) -> Path:
    folder.mkdir(parents=True)
    (folder / ADAPTER_WEIGHTS).hardlink_to(source / ADAPTER_WEIGHTS)
    (folder / ADAPTER_CONFIG).write_text((source / ADAPTER_CONFIG).read_text())
    _change(folder, lora_alpha=alpha)
    return folder


def _change(folder: Path, **fields: object) -> None:
    path = folder / ADAPTER_CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
