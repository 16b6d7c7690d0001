"""What the steps of a training change: the leaves, AdamW's moments and the place in the schedule.

In: an adapter, or any leaves. Out: after every step, the adapter as it is now, and tensors from which a later run goes
on bit for bit. Next: ``tuning`` and ``continual.learning`` decide what is learned and when it is enough.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import get_cosine_schedule_with_warmup

from readapt_runtime.adapt.anchor import Anchor
from readapt_runtime.adapt.base import LoadedBase
from readapt_runtime.adapt.factors import SideFactors
from readapt_runtime.lora_format import LoraAdapter, LoraModule

_SIDES = ("a", "b")
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class Pace:
    """How far each of ``steps`` steps goes: a rate warms up linearly, then falls with a cosine to zero."""

    warmup: int
    steps: int
    clip: float
    """Largest norm of the gradient."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A descent after ``steps`` steps, in the names of ``Descent.tensors``."""

    steps: int
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Group:
    """Leaves with one learning rate."""

    leaves: Mapping[str, Tensor]
    """By names that no other group has."""
    rate: float
    """At its peak."""


class Descent:
    """Leaves on their way down a loss."""

    def __init__(self, groups: Sequence[Group], pace: Pace, saved: Saved | None = None) -> None:
        """From where the leaves are, or from where ``saved`` was."""
        self._leaves = {name: leaf for group in groups for name, leaf in group.leaves.items()}
        parameters = [
            {"params": list(group.leaves.values()), "lr": group.rate, "initial_lr": group.rate}
            for group in groups
            if group.leaves
        ]
        self._optimizer = torch.optim.AdamW(parameters, weight_decay=0.0)
        if saved is not None:
            self._restore(saved)
        done = 0 if saved is None else saved.steps
        self._schedule = get_cosine_schedule_with_warmup(self._optimizer, pace.warmup, pace.steps, last_epoch=done - 1)
        self._clip = pace.clip

    def step(self, loss: Tensor) -> None:
        """One optimiser step down ``loss``."""
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(list(self._leaves.values()), self._clip)
        self._optimizer.step()
        self._schedule.step()

    def tensors(self) -> dict[str, Tensor]:
        """Every leaf with its two moments, on the CPU; only after the first step, copied only from a GPU."""
        found: dict[str, Tensor] = {}
        for name, leaf in self._leaves.items():
            state = self._optimizer.state[leaf]
            values = (leaf.detach(), *(state[moment] for moment in _MOMENTS))
            found |= zip(_keys(name), (value.cpu() for value in values), strict=True)
        return found

    def _restore(self, saved: Saved) -> None:
        """All leaves or, where one is missing, none."""
        found = {name: [saved.tensors[key] for key in _keys(name)] for name in self._leaves}
        for name, leaf in self._leaves.items():
            value, *moments = found[name]
            leaf.detach().copy_(value)
            state = {m: torch.empty_like(leaf).detach().copy_(x) for m, x in zip(_MOMENTS, moments, strict=True)}
            self._optimizer.state[leaf] = {"step": torch.tensor(float(saved.steps)), **state}


def _keys(leaf: str) -> tuple[str, ...]:
    """The names of a leaf and its moments."""
    return (leaf, *(f"{leaf}.{moment}" for moment in _MOMENTS))


class Training:
    """An adapter that is being trained."""

    def __init__(
        self, start: LoraAdapter, base: LoadedBase, rate: float, pace: Pace, seed: int, saved: Saved | None = None
    ) -> None:
        """From ``start``, or from where ``saved`` was; ``start`` is what the anchor holds to either way."""
        self._start = start
        self.factors = trainable(start, base, seed)
        self._anchor = Anchor(self.factors)
        self._descent = Descent([Group(leaves_of(self.factors), rate)], pace, saved)

    def anchor(self) -> Tensor:
        """The distance from the start, differentiable."""
        return self._anchor(self.factors)

    def step(self, loss: Tensor) -> None:
        """One optimiser step down ``loss``."""
        self._descent.step(loss)

    def adapter(self) -> LoraAdapter:
        """The factors as they are now, in fp32."""
        return snapshot(self.factors, self._start)

    def tensors(self) -> dict[str, Tensor]:
        """See ``Descent.tensors``."""
        return self._descent.tensors()


def leaves_of(factors: Mapping[str, SideFactors]) -> dict[str, Tensor]:
    """Every factor under its name in what is saved."""
    return {f"{name}.{side}": getattr(f, side) for name, f in factors.items() for side in _SIDES}


def snapshot(factors: Mapping[str, SideFactors], start: LoraAdapter) -> LoraAdapter:
    """Copies of the factors on the CPU, with the scales of the adapter that they started as."""
    sides = ((name, _on_cpu(side.a), _on_cpu(side.b)) for name, side in factors.items())
    return LoraAdapter({name: LoraModule(name, a, b, start.modules[name].scale) for name, a, b in sides})


def _on_cpu(factor: Tensor) -> Tensor:
    return factor.detach().to("cpu", copy=True)


def trainable(adapter: LoraAdapter, base: LoadedBase, seed: int) -> dict[str, SideFactors]:
    """The adapter's factors as fp32 leaves with gradients, on the device of ``base``.

    A direction whose product is zero on both sides would never learn: its row of A starts at random (PEFT's uniform
    distribution, within ±1/√in), its column of B at zero, so that the function does not change.
    """
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for name, module in adapter.modules.items():
        a, b = (side.detach().float().clone(memory_format=torch.contiguous_format) for side in (module.a, module.b))
        dead = (a.norm(dim=1) == 0) & (b.norm(dim=0) == 0)
        bound = 1 / math.sqrt(a.shape[1])
        a[dead] = torch.empty(int(dead.sum()), a.shape[1]).uniform_(-bound, bound, generator=generator)
        scale = torch.full((module.rank,), module.scale, device=base.device)
        a, b = a.to(base.device), b.to(base.device)
        factors[name] = SideFactors(a.requires_grad_(), b.requires_grad_(), scale)
    return factors
