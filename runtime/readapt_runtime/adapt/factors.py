"""Low-rank factors beside the linear layers of a model: y = W x + B (c ⊙ (A x)).

The base model is loaded once and never edited. Whatever is tried on it (an adapter, a candidate of the search, the
parameters being tuned) is attached for the length of a ``with`` block by forward hooks, which search, scoring,
retention and tuning share. The result equals PEFT's LoRA layer without dropout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from readapt_runtime.adapt.base import LoadedBase
from readapt_runtime.adapt.errors import Misfit
from readapt_runtime.lora_format import LoraAdapter


@dataclass(slots=True)
class SideFactors:
    """What is added beside one linear layer; ``scale`` may change while attached, that is what a search trial does."""

    a: Tensor
    """[rank, in]"""
    b: Tensor
    """[out, rank]"""
    scale: Tensor
    """[rank], one factor per direction."""

    def __call__(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out] in the dtype of ``x``; gradients reach ``a`` and ``b`` in their own dtype."""
        hidden = F.linear(x, self.a.to(x.dtype)) * self.scale.to(x.dtype)
        return F.linear(hidden, self.b.to(x.dtype))


@contextmanager
def attached(model: nn.Module, factors: Mapping[str, SideFactors]) -> Iterator[None]:
    """Attaches ``factors`` (by module name, ``model.layers.0.self_attn.q_proj``) to ``model`` within the block.

    Raises Misfit for a name that is no linear layer of the model and for shapes that do not fit it.
    """
    layers = [(checked_linear(model, name, side), side) for name, side in factors.items()]
    handles = [layer.register_forward_hook(_Beside(side)) for layer, side in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def checked_linear(model: nn.Module, name: str, side: SideFactors) -> nn.Linear:
    """The linear layer ``name``; raises Misfit unless it exists and ``side`` has its shape."""
    try:
        layer = model.get_submodule(name)
    except AttributeError as error:
        raise Misfit(f"the base model has no module {name}") from error
    if not isinstance(layer, nn.Linear):
        raise Misfit(f"{name} is no linear layer")
    rank = side.scale.numel()
    if side.a.shape != (rank, layer.in_features) or side.b.shape != (layer.out_features, rank):
        raise Misfit(
            f"{name}: factors of {tuple(side.a.shape)} and {tuple(side.b.shape)} do not fit a layer "
            f"of {layer.in_features} inputs and {layer.out_features} outputs"
        )
    return layer


class _Beside:
    """A forward hook that adds the product of the side factors to a layer's output."""

    __slots__ = ("side",)

    def __init__(self, side: SideFactors) -> None:
        self.side = side

    def __call__(self, _layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + self.side(inputs[0])


def side_factors(adapter: LoraAdapter, base: LoadedBase) -> dict[str, SideFactors]:
    """The adapter's modules, frozen, ready to be attached to ``base``."""
    return {
        name: SideFactors(
            a=module.a.detach().to(base.device, base.dtype),
            b=module.b.detach().to(base.device, base.dtype),
            scale=torch.full((module.rank,), module.scale, device=base.device),
        )
        for name, module in adapter.modules.items()
    }
