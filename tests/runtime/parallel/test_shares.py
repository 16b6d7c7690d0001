"""The shares of a model and of an adapter add up to the whole, whatever does not divide."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from readapt_runtime.engine.pool import PageLayout
from readapt_runtime.model.adapter_image import AdapterImage, LinearFactors
from readapt_runtime.model.config import DecoderConfig, Linear, read_config
from readapt_runtime.model.family import UnsupportedModel
from readapt_runtime.model.shard import COLUMN_PARALLEL, Shard
from readapt_runtime.parallel.images import ImageMaker
from readapt_testing.tiny_families import FAMILIES, write_family

Dense = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Factors:
    a: torch.Tensor
    b: torch.Tensor
    scale: float


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DecoderConfig:
    """12 heads over 4; 80 intermediate features, of which a fourth is no multiple of 16."""
    options = {**FAMILIES["llama"], "num_attention_heads": 12, "num_key_value_heads": 4, "head_dim": 4}
    return read_config(write_family(tmp_path_factory.mktemp("shares"), {**options, "hidden_size": 60}))


def _adapter(config: DecoderConfig, rank: int) -> dict[str, Factors]:
    """Factors of fp64 for every module, their ranks differing."""
    random = torch.Generator().manual_seed(rank)
    shapes = config.module_shapes.items()
    ranks = {name: max(1, rank - i % 3) for i, (name, _) in enumerate(shapes)}

    def values(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    return {
        n: Factors(values(ranks[n], into), values(out, ranks[n]), 0.5 + i) for i, (n, (out, into)) in enumerate(shapes)
    }


def _factors(image: AdapterImage, layer: int, part: LinearFactors, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A ``[rank rows, in]`` and Bᵀ ``[ranks, out]`` as they lie in the pages."""
    flat, own = image.read().here[:, layer].reshape(-1), part.slices[index]
    a = flat[part.a_offset :][: part.rank * part.in_features].view(part.rank, part.in_features)
    ends = [s.b_offset for s in part.slices if s.b_offset > own.b_offset]
    rows = (ends[0] - own.b_offset) // own.out_size if ends else None
    b_t = flat[own.b_offset :]
    whole = len(b_t) // own.out_size if rows is None else rows
    return a[own.rank_start :][: own.rank], b_t[: whole * own.out_size].view(whole, own.out_size)


def _update(images: list[AdapterImage], shards: list[Shard], module: str, layer: int, linear: Linear) -> torch.Tensor:
    """The module's update ``scale · B A``, put together from the shares as the ranks' exchange does."""
    whole = shards[0].whole
    index = [p.module for p in whole.linears[linear].slices].index(module)
    out, into = whole.module_shapes[whole.module_name(layer, module)]
    update = torch.zeros(out, into, dtype=torch.float64)
    parts = [(i.layers[layer][linear], i, s) for i, s in zip(images, shards, strict=True)]
    factors = [(*_factors(image, layer, part, index), part.slices[index], shard) for part, image, shard in parts]
    for a, b_t, own, shard in factors:
        rows, columns = shard.rows(module), shard.columns(module)
        if not images[0].fully_sharded:
            share = (b_t[: own.rank].T @ a)[: rows.count, : columns.count]
            place = update[rows.start : rows.start + rows.count, columns.start : columns.start + columns.count]
            copies = sum(s.rows(module).start == rows.start for s in shards) if linear in COLUMN_PARALLEL else 1
            place += own.scale * share / copies
        elif linear in COLUMN_PARALLEL:
            gathered = torch.cat([other for other, *_ in factors])
            copies = sum(s.rows(module).start == rows.start for s in shards)
            share = (b_t[: len(gathered)].T @ gathered)[: rows.count]
            update[rows.start : rows.start + rows.count] += own.scale * share / copies
        else:
            summed = torch.cat([o[:, : s.columns(module).count] for o, _, _, s in factors], dim=1)
            update[own.out_start : own.out_start + own.out_size] += own.scale * (b_t[: own.rank].T @ summed)
    return update


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("full_shard_rank", [99, 1], ids=["exact", "full"])
def test_the_shares_of_an_adapter_make_its_dense_update(
    config: DecoderConfig, world: int, full_shard_rank: int
) -> None:
    adapter = _adapter(config, rank=7)
    shards = [Shard(config, rank, world) for rank in range(world)]
    elements = PageLayout.of(shards[0].config).elements
    maker = ImageMaker(elements, torch.float64, full_shard_rank)
    images = [maker.make(adapter, shard) for shard in shards]
    assert {image.fully_sharded for image in images} == {world > 1 and full_shard_rank == 1}
    assert max(image.num_pages for image in images) == images[0].num_pages
    for layer in range(config.num_layers):
        for linear, fused in config.linears.items():
            for part in fused.slices:
                found = adapter[config.module_name(layer, part.module)]
                update = _update(images, shards, part.module, layer, linear)
                torch.testing.assert_close(update, found.scale * found.b @ found.a, rtol=1e-12, atol=1e-12)


def test_full_sharding_leaves_no_factor_whole(config: DecoderConfig) -> None:
    adapter, shard = _adapter(config, rank=8), Shard(config, 0, 4)
    exact, full = (ImageMaker(64, torch.float32, rank).make(adapter, shard) for rank in (99, 1))
    whole = sum(f.a.numel() + f.b.numel() for f in adapter.values()) / config.num_layers / 64
    assert full.num_pages < exact.num_pages < whole
    assert full.num_pages < 1.5 * whole / 4


@pytest.mark.parametrize(("heads", "kv_heads", "world"), [(9, 3, 2), (12, 4, 8), (4, 2, 3), (12, 4, 6)], ids=str)
def test_heads_that_cannot_be_shared_out_are_refused_with_their_numbers(
    config: DecoderConfig, heads: int, kv_heads: int, world: int
) -> None:
    odd = replace(config, num_heads=heads, num_kv_heads=kv_heads)
    with pytest.raises(UnsupportedModel, match=f"{heads} heads over {kv_heads} key/value heads on {world} ranks"):
        Shard(odd, 0, world)


@pytest.mark.parametrize("world", [2, 4])
def test_every_head_is_on_one_rank_beside_its_keys(config: DecoderConfig, world: int) -> None:
    group, dim = config.num_heads // config.num_kv_heads, config.head_dim
    seen: list[int] = []
    for rank in range(world):
        shard = Shard(config, rank, world)
        queries, keys = shard.rows("self_attn.q_proj"), shard.rows("self_attn.k_proj")
        own = range(queries.start // dim, (queries.start + queries.count) // dim)
        held = range(keys.start // dim, (keys.start + keys.count) // dim)
        assert {head // group for head in own} == set(held)
        seen += own
    assert seen == list(range(config.num_heads))
