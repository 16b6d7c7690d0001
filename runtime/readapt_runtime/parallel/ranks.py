"""All ranks of a pod, started: a model in one piece, or a share here and the others in worker processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from readapt_runtime.engine.engine import Model
from readapt_runtime.engine.pool import PagePool
from readapt_runtime.model.adapter_image import AdapterImage, Packer, UnpackedAdapter
from readapt_runtime.model.config import DecoderConfig
from readapt_runtime.model.shard import Shard
from readapt_runtime.parallel.crew import Crew, Patience
from readapt_runtime.parallel.errors import TooFewDevices
from readapt_runtime.parallel.images import ImageMaker
from readapt_runtime.parallel.model import ParallelModel
from readapt_runtime.parallel.rank import Plan, load


@dataclass(frozen=True, slots=True)
class Ranks:
    """What the engine drives, and what makes images for it."""

    model: Model
    pool: PagePool
    """Of rank 0; the others have as many pages."""
    make_image: Callable[[UnpackedAdapter], AdapterImage]
    crew: Crew | None = None

    def close(self) -> None:
        if self.crew is not None:
            self.crew.close()


def start_ranks(
    plan: Plan, config: DecoderConfig, world: int, full_shard_rank: int, patience: Patience | None = None
) -> Ranks:
    """Every rank has loaded and met the others. Raises what ``load`` and ``Crew.meet`` raise, TooFewDevices."""
    shard = Shard(config, 0, world)
    if world == 1:
        alone = load(plan, shard)
        return Ranks(alone.decoder(), alone.pool, Packer(config, alone.pool.layout.elements, plan.dtype).image)
    if plan.device == "cuda" and torch.cuda.device_count() < world:
        raise TooFewDevices(f"{world} ranks need a GPU each, there are {torch.cuda.device_count()}")
    crew = Crew(plan, config, world, patience)
    try:
        loaded = load(plan, shard)
        model = ParallelModel(loaded.decoder(crew.meet(loaded.pool.num_pages)), crew)
    except BaseException:
        crew.close()
        raise
    maker = ImageMaker(loaded.pool.layout.elements, plan.dtype, full_shard_rank)
    return Ranks(model, loaded.pool, lambda adapter: crew.share(adapter.modules(), maker), crew)
