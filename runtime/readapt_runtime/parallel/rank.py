"""Everything that one rank computes with: weights, pool and decoder of its share. Rank 0 and the workers alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from readapt_runtime.engine.engine import Model
from readapt_runtime.engine.pool import PageLayout, PageOrder, PagePool
from readapt_runtime.model.backends import Bounds, choose_ops
from readapt_runtime.model.decoders import choose_decoder
from readapt_runtime.model.ops import Ops
from readapt_runtime.model.shard import Shard
from readapt_runtime.model.weights import DecoderWeights, load_weights
from readapt_runtime.parallel.group import Group
from readapt_runtime.parallel.lora import Others


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be computed, the same for every rank of a pod."""

    base: Path
    dtype: torch.dtype
    device: str
    """cpu, or cuda, of which each rank takes one."""
    pool_bytes: int
    """Of the pod: each rank gets an equal part."""
    bounds: Bounds
    order: PageOrder | None = None
    """Of each pool's pages; None is that of the device. It decides who computes (``choose_decoder``)."""

    def device_of(self, shard: Shard) -> torch.device:
        if self.device == "cuda" and shard.world > 1:
            return torch.device("cuda", shard.rank)
        return torch.device(self.device)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A rank that has its weights and does not know the others yet."""

    plan: Plan
    shard: Shard
    ops: Ops
    weights: DecoderWeights
    pool: PagePool

    def decoder(self, group: Group | None = None) -> Model:
        """Of a rank alone, or of one among several."""
        others = None if group is None else Others(group, self.pool)
        return choose_decoder(self.shard.config, self.weights, self.ops, self.pool, self.plan.bounds, others)


def load(plan: Plan, shard: Shard) -> Loaded:
    """Raises BadWeights, UnsupportedModel, PoolTooSmall. Ranks of one CPU share out its threads."""
    device, config = plan.device_of(shard), shard.config
    if shard.world > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // shard.world))
        if device.type == "cuda":
            torch.cuda.set_device(device)  # Triton launches on the current device, wherever the tensors are
    config.require_length(plan.bounds.max_model_len)
    pool = PagePool(PageLayout.of(config), plan.pool_bytes // shard.world, plan.dtype, device, plan.order)
    ops = choose_ops(config, plan.dtype, device, pool.order)
    weights = load_weights(plan.base, shard.whole, plan.dtype, device, ops, shard)
    return Loaded(plan, shard, ops, weights, pool)
