"""A rank's share of an adapter, as an image for that rank's pages.

In: the factors of a checked adapter. Out: ``AdapterImage``. Next: the pool of the rank.

The exact scheme needs no exchange beyond the base's own sum: where outputs are shared out A is whole and B is cut,
where inputs are shared out A is cut and B is whole, and both parts are linear, so that their sum over the ranks is the
whole. Full sharding (S-LoRA, arXiv 2311.03285, section 6) cuts the other factor as well: A of q, k, v, gate, up along
the rank, B of o, down by outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from readapt_runtime.model.adapter_image import AdapterImage, LoraFactors, pack_adapter
from readapt_runtime.model.config import FusedLinear, Linear, Slice
from readapt_runtime.model.shard import COLUMN_PARALLEL, Cut, Shard


@dataclass(frozen=True, slots=True)
class _Factors:
    """See ``LoraFactors``; the rows of B may be more or fewer than the rank of A."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float


@dataclass(frozen=True, slots=True)
class ImageMaker:
    """Makes the images of one pod; adapters of at least ``full_shard_rank`` are fully sharded."""

    page_elements: int
    dtype: torch.dtype
    full_shard_rank: int

    def make(self, modules: Mapping[str, LoraFactors], shard: Shard) -> AdapterImage:
        """The share of ``shard``; shares of the first rank are the largest, so its page count holds for all."""
        if shard.world == 1:
            return pack_adapter(modules, shard.config, self.page_elements, self.dtype)
        rank = max((m.a.shape[0] for m in modules.values()), default=0)
        if rank >= self.full_shard_rank:
            own, linears = dict(_cut_fully(modules, shard)), _outputs_of_a_share(shard)
            image = pack_adapter(own, shard.config, self.page_elements, self.dtype, linears)
            return replace(image, rank=rank, fully_sharded=True)
        return pack_adapter(dict(_cut(modules, shard)), shard.config, self.page_elements, self.dtype)


def _cut(modules: Mapping[str, LoraFactors], shard: Shard) -> Iterator[tuple[str, LoraFactors]]:
    for name, _, module in _present(modules, shard):
        whole = modules[name]
        a, b = _take(whole.a, 1, shard.columns(module)), _take(whole.b, 0, shard.rows(module))
        yield name, _Factors(a, b, whole.scale)


def _cut_fully(modules: Mapping[str, LoraFactors], shard: Shard) -> Iterator[tuple[str, LoraFactors]]:
    for name, linear, module in _present(modules, shard):
        whole = modules[name]
        if linear in COLUMN_PARALLEL:
            ranks = Cut.even(whole.a.shape[0], shard.rank, shard.world)
            padded = replace(Cut.all_of(ranks.total), size=ranks.size * shard.world)
            a = _take(whole.a, 0, ranks)
            b = _take(_take(whole.b, 0, shard.rows(module)), 1, padded)
        else:
            own = shard.hidden
            a, b = _take(whole.a, 1, shard.columns(module)), whole.b[own.start : own.start + own.count]
        yield name, _Factors(a, b, whole.scale)


def _present(modules: Mapping[str, LoraFactors], shard: Shard) -> Iterator[tuple[str, Linear, str]]:
    """(full name, fused linear, name inside the layer) of the adapter's modules."""
    for layer in range(shard.whole.num_layers):
        for linear, fused in shard.whole.linears.items():
            for part in fused.slices:
                name = shard.whole.module_name(layer, part.module)
                if name in modules:
                    yield name, linear, part.module


def _outputs_of_a_share(shard: Shard) -> dict[Linear, FusedLinear]:
    """The rank's fused linears, o and down with those outputs only for which it holds B."""
    own = shard.hidden
    return {
        linear: fused
        if linear in COLUMN_PARALLEL
        else replace(fused, slices=(Slice(fused.slices[0].module, own.start, own.count),))
        for linear, fused in shard.config.linears.items()
    }


def _take(tensor: torch.Tensor, axis: int, cut: Cut) -> torch.Tensor:
    """The share of a matrix along an axis, zeros behind it."""
    own = tensor.narrow(axis, cut.start, cut.count)
    missing = cut.size - cut.count
    return own if missing == 0 else F.pad(own, (0, missing) if axis == 1 else (0, 0, 0, missing))
