"""Factors beside the layers do what PEFT does, and leave the model as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from readapt_runtime.adapt.base import LoadedBase, load_base
from readapt_runtime.adapt.errors import Misfit
from readapt_runtime.adapt.factors import SideFactors, attached, side_factors
from readapt_runtime.lora_format import LoraAdapter, linear_shapes, read_adapter
from readapt_testing.tiny_llama import Oracle, write_adapter_folder, write_base

TOKENS = [[5, 17, 200, 31, 8, 99]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("peft")
    write_base(root / "base", seed=4)
    write_adapter_folder(root / "adapter", root / "base", rank=5, seed=9)
    return root


@pytest.fixture(scope="module")
def base(folder: Path) -> LoadedBase:
    return load_base(folder / "base", f"sha256:{'0' * 64}")


@pytest.fixture(scope="module")
def adapter(folder: Path, base: LoadedBase) -> LoraAdapter:
    return read_adapter(folder / "adapter", linear_shapes(base.model.config.to_dict()))


def logits(model: torch.nn.Module) -> Tensor:
    found: Tensor = model(torch.tensor(TOKENS)).logits
    return found


def test_attached_factors_equal_peft(folder: Path, base: LoadedBase, adapter: LoraAdapter) -> None:
    expected = logits(Oracle(folder / "base").model(folder / "adapter")).detach()
    alone = logits(base.model)
    with attached(base.model, side_factors(adapter, base)):
        torch.testing.assert_close(logits(base.model), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(base.model), alone, rtol=0, atol=0)
    assert (expected - alone).abs().max() > 0.5


def test_gradients_equal_pefts(folder: Path, base: LoadedBase, adapter: LoraAdapter) -> None:
    peft_model = Oracle(folder / "base").model(folder / "adapter")
    for name, parameter in peft_model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    logits(peft_model).log_softmax(-1)[..., 7].sum().backward()
    sides = side_factors(adapter, base)
    for side in sides.values():
        side.a.requires_grad_()
        side.b.requires_grad_()
    with attached(base.model, sides):
        logits(base.model).log_softmax(-1)[..., 7].sum().backward()  # type: ignore[no-untyped-call]
    expected = dict(peft_model.named_parameters())
    for name, side in sides.items():
        for ours, kind in ((side.a, "A"), (side.b, "B")):
            theirs = expected[f"base_model.model.{name}.lora_{kind}.default.weight"].grad
            torch.testing.assert_close(ours.grad, theirs, rtol=2e-3, atol=1e-3)


def test_a_failure_inside_the_block_detaches(base: LoadedBase, adapter: LoraAdapter) -> None:
    alone = logits(base.model)
    with pytest.raises(KeyError), attached(base.model, side_factors(adapter, base)):
        raise KeyError
    torch.testing.assert_close(logits(base.model), alone, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "width", "message"),
    [
        ("model.layers.9.self_attn.q_proj", 64, "no module"),
        ("model.norm", 64, "no linear layer"),
        ("model.layers.0.self_attn.q_proj", 63, "do not fit"),
    ],
)
def test_factors_that_do_not_belong_are_refused(base: LoadedBase, name: str, width: int, message: str) -> None:
    side = SideFactors(torch.zeros(2, width), torch.zeros(64, 2), torch.ones(2))
    with pytest.raises(Misfit, match=message), attached(base.model, {name: side}):
        pass
