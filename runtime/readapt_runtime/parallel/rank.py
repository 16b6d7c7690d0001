"""Everything that one rank computes with: weights, pool and decoder of its share. Rank 0 and the workers alike."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from readapt_runtime.engine.engine import Model
from readapt_runtime.engine.pool import PageLayout, PagePool
from readapt_runtime.model.backends import Bounds, choose_backends, choose_ops
from readapt_runtime.model.decoder import Decoder
from readapt_runtime.model.decoders import choose_decoder
from readapt_runtime.model.ops import Ops
from readapt_runtime.model.shard import Shard
from readapt_runtime.model.weights import DecoderWeights, load_weights
from readapt_runtime.parallel.group import Group
from readapt_runtime.parallel.lora import ShardedLora


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

    def decoder(self) -> Model:
        """Of a rank alone."""
        return choose_decoder(self.shard.config, self.weights, self.ops, self.pool, self.plan.bounds)

    def part(self, group: Group) -> Decoder:
        """Of one rank among several. On a GPU by torch: recorded steps hold no exchange (ADR 0011)."""
        backends = choose_backends(self.shard.config, self.ops, self.pool, self.plan.bounds)
        return Decoder(self.weights, replace(backends, lora=ShardedLora(backends.lora, self.pool, group)), group)


def load(plan: Plan, shard: Shard) -> Loaded:
    """Raises BadWeights, UnsupportedModel, PoolTooSmall. Ranks of one CPU share out its threads."""
    device, config = plan.device_of(shard), shard.config
    if shard.world > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // shard.world))
    config.require_length(plan.bounds.max_model_len)
    ops = choose_ops(config, plan.dtype, device)
    weights = load_weights(plan.base, shard.whole, plan.dtype, device, ops, shard)
    pool = PagePool(PageLayout.of(config), plan.pool_bytes // shard.world, plan.dtype, device)
    return Loaded(plan, shard, ops, weights, pool)
