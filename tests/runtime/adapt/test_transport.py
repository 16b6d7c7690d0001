"""Transport: what it solves for, against dense fp64, and what it does to a copied adapter."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor

from readapt_runtime.adapt.factors import attached, side_factors
from readapt_runtime.adapt.layerwise import Stream
from readapt_runtime.adapt.tokens import encode, mean_losses
from readapt_runtime.adapt.transport import RIDGE, TEXT_WEIGHT, Texts, transport
from readapt_runtime.lora_format import LoraAdapter
from readapt_runtime.progress import JsonLog

QUIET = JsonLog(io.StringIO())
FIRST = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def texts(world: Any) -> Texts:
    free = [[3, 5, 7, 11, 13, 17, 19, 4], [2, 9, 8, 6, 5, 4, 3, 10]] * 4
    return Texts([row.ids for row in encode(world.new, world.splits.train[:96])], free)


@pytest.fixture(scope="module")
def transported(world: Any, texts: Texts) -> LoraAdapter:
    return transport(world.old, world.new, world.adapter, texts, QUIET)


def _seen(model: Any, module: str, texts: list[list[int]]) -> Tensor:
    """[in, tokens] fp64: what transformers gives to the module, text by text and without padding."""
    seen: list[Tensor] = []
    handle = model.get_submodule(module).register_forward_pre_hook(lambda _, args: seen.append(args[0][0].double()))
    with torch.no_grad():
        for text in texts:
            model(torch.tensor([list(text)]))
    handle.remove()
    return torch.cat(seen).T


def test_the_first_module_is_the_optimum_of_reduced_rank_regression(
    world: Any, texts: Texts, transported: LoraAdapter
) -> None:
    x0, x1 = (_seen(base.model, FIRST, texts.task) for base in (world.old, world.new))
    text = _seen(world.new.model, FIRST, texts.free)
    module = world.adapter.modules[FIRST]
    update = module.scale * module.b.double() @ module.a.double()
    w0, w1 = (base.model.get_submodule(FIRST).weight.double() for base in (world.old, world.new))

    gram, free = x1 @ x1.T, text @ text.T
    size = float(gram.diagonal().mean())
    prior = RIDGE * size * torch.eye(len(gram)).double() + TEXT_WEIGHT * size / float(free.diagonal().mean()) * free
    wanted = ((w0 + update) @ x0 - w1 @ x1) @ x1.T + update @ prior
    values, vectors = torch.linalg.eigh(gram + prior)
    root = vectors @ torch.diag(values.sqrt()) @ vectors.T  # the symmetric root: another one than the code takes
    inverse = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    u, s, vt = torch.linalg.svd(wanted @ inverse)
    rank = module.rank
    expected = (u[:, :rank] * s[:rank]) @ vt[:rank] @ torch.linalg.inv(root)

    found = transported.modules[FIRST]
    ours = found.scale * found.b.double() @ found.a.double()
    assert (ours - expected).norm() <= 1e-3 * expected.norm()


def test_it_recovers_most_of_what_copying_lost_without_labels(world: Any, transported: LoraAdapter) -> None:
    rows = encode(world.new, world.splits.gate[:300])

    def loss(base: Any, adapter: LoraAdapter) -> float:
        with attached(base.model, side_factors(adapter, base)):
            return float(mean_losses(base, rows).mean())

    before, copied, after = loss(world.old, world.adapter), loss(world.new, world.adapter), loss(world.new, transported)
    assert copied - before > 0.1
    assert copied - after > 0.5 * (copied - before)


def test_between_equal_bases_the_function_stays(world: Any, texts: Texts) -> None:
    same = transport(world.old, world.old, world.adapter, texts, QUIET)
    rows = encode(world.old, world.splits.gate[:64])
    losses = []
    for adapter in (world.adapter, same):
        with attached(world.old.model, side_factors(adapter, world.old)):
            losses.append(mean_losses(world.old, rows))
    torch.testing.assert_close(losses[1], losses[0], rtol=2e-2, atol=2e-3)


def test_ranks_scales_and_modules_stay_and_a_module_of_zero_may_learn(world: Any, texts: Texts) -> None:
    some = {n: m for n, m in world.adapter.modules.items() if "layers.0." not in n}
    found = transport(world.old, world.new, LoraAdapter(some), texts, QUIET)
    assert list(found.modules) == list(some)
    assert all((m.rank, m.scale) == (some[n].rank, some[n].scale) for n, m in found.modules.items())
    assert all(torch.isfinite(m.a).all() and torch.isfinite(m.b).all() for m in found.modules.values())


def test_a_stream_passes_layers_as_the_model_does(world: Any) -> None:
    texts = [[3, 5, 7, 11], [2, 9, 8, 6, 5, 4, 3], [1, 2]]
    model = world.new.model
    last = f"model.layers.{model.config.num_hidden_layers - 1}.mlp.down_proj"
    stream = Stream(world.new, texts)
    for layer in range(model.config.num_hidden_layers):
        found = stream.pass_layer(layer, {}, inputs=[last] if last.startswith(f"model.layers.{layer}.") else [])
    expected = _seen(model, last, texts).T
    ours = torch.cat(found[last]).double()
    assert ours.shape == expected.shape
    order = (
        sorted(range(len(ours)), key=lambda i: ours[i].tolist()),
        sorted(range(len(expected)), key=lambda i: expected[i].tolist()),
    )
    torch.testing.assert_close(ours[order[0]], expected[order[1]], rtol=1e-4, atol=1e-5)
