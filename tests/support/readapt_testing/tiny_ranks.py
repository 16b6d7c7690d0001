"""Engines over several ranks: the worker processes are real, rank 0 is the process of the test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from readapt_api.contract import Digest
from readapt_runtime.engine.core import Variant
from readapt_runtime.engine.engine import Engine
from readapt_runtime.engine.limits import EngineLimits
from readapt_runtime.engine.pool import PageLayout, PageOrder
from readapt_runtime.lora_format import AdapterReader
from readapt_runtime.model.backends import Bounds
from readapt_runtime.model.config import read_config
from readapt_runtime.model.shard import Shard
from readapt_runtime.parallel.crew import Crew, Patience
from readapt_runtime.parallel.rank import Plan
from readapt_runtime.parallel.ranks import Ranks, start_ranks

PATIENCE = Patience(start_s=120.0, step_s=30.0)
_DIGEST: Digest = f"sha256:{'0' * 64}"


@dataclass(frozen=True)
class TinyRanks:
    """A pod's ranks and an engine over them."""

    base: Path
    ranks: Ranks
    engine: Engine

    @property
    def crew(self) -> Crew:
        if self.ranks.crew is None:
            raise AssertionError("a model in one piece")
        return self.ranks.crew

    def variant(self, folder: Path) -> Variant:
        adapter = AdapterReader(read_config(self.base).module_shapes).read(folder)
        return Variant(folder.name, _DIGEST, self.ranks.make_image(adapter))


@contextmanager
def tiny_ranks(
    base: Path,
    world: int,
    limits: EngineLimits,
    num_pages: int = 200,
    full_shard_rank: int = 128,
    dtype: torch.dtype = torch.float32,
    patience: Patience = PATIENCE,
    order: PageOrder | None = None,
) -> Iterator[TinyRanks]:
    """Ranks on the CPU with ``num_pages`` each; they are gone when the block ends.

    With pages as Triton's kernels want them it is these that compute, in the interpreter.
    """
    threads = torch.get_num_threads()
    config = read_config(base)
    pool_bytes = world * num_pages * PageLayout.of(Shard(config, 0, world).config).page_bytes(dtype)
    bounds = Bounds(512, limits.max_batch_tokens, limits.max_running, 512)
    plan = Plan(base, dtype, "cpu", pool_bytes, bounds, order)
    ranks = start_ranks(plan, config, world, full_shard_rank, patience)
    try:
        yield TinyRanks(base, ranks, Engine(ranks.model, ranks.pool, limits, clock=lambda: 0.0))
    finally:
        ranks.close()
        torch.set_num_threads(threads)
