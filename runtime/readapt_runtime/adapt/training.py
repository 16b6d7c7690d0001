"""What the steps of a tuning change: the factors, AdamW's moments and the place in the schedule.

In: an adapter. Out: after every step, the adapter as it is now, and tensors from which a later run goes on bit for bit.
Next: ``tuning`` decides what is learned and when it is enough.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import get_cosine_schedule_with_warmup

from readapt_runtime.adapt.anchor import Anchor
from readapt_runtime.adapt.factors import SideFactors
from readapt_runtime.lora_format import LoraAdapter, LoraModule

_SIDES = ("a", "b")
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class Pace:
    """How far each of ``steps`` steps goes: the rate warms up linearly, then falls with a cosine to zero."""

    rate: float
    warmup: int
    steps: int
    clip: float
    """Largest norm of the gradient."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A training after ``steps`` steps, in the names of ``Training.tensors``."""

    steps: int
    tensors: Mapping[str, Tensor]


class Training:
    """An adapter that is being trained."""

    def __init__(self, start: LoraAdapter, pace: Pace, seed: int, saved: Saved | None = None) -> None:
        """From ``start``, or from where ``saved`` was; ``start`` is what the anchor holds to either way."""
        self._start = start
        self.factors = trainable(start, seed)
        self._anchor = Anchor(self.factors)
        self._leaves = {f"{name}.{side}": getattr(f, side) for name, f in self.factors.items() for side in _SIDES}
        group = {"params": list(self._leaves.values()), "initial_lr": pace.rate}
        self._optimizer = torch.optim.AdamW([group], lr=pace.rate, weight_decay=0.0)
        if saved is not None:
            self._restore(saved)
        done = 0 if saved is None else saved.steps
        self._schedule = get_cosine_schedule_with_warmup(self._optimizer, pace.warmup, pace.steps, last_epoch=done - 1)
        self._clip = pace.clip

    def anchor(self) -> Tensor:
        """The distance from the start, differentiable."""
        return self._anchor(self.factors)

    def step(self, loss: Tensor) -> None:
        """One optimiser step down ``loss``."""
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(list(self._leaves.values()), self._clip)
        self._optimizer.step()
        self._schedule.step()

    def adapter(self) -> LoraAdapter:
        """The factors as they are now, in fp32."""
        return LoraAdapter(
            {
                name: LoraModule(
                    name, side.a.detach().clone(), side.b.detach().clone(), self._start.modules[name].scale
                )
                for name, side in self.factors.items()
            }
        )

    def tensors(self) -> dict[str, Tensor]:
        """Every factor with its two moments; only after the first step, no copies."""
        found = {}
        for name, leaf in self._leaves.items():
            found[name] = leaf.detach()
            for moment in _MOMENTS:
                found[f"{name}.{moment}"] = self._optimizer.state[leaf][moment]
        return found

    def _restore(self, saved: Saved) -> None:
        for name, leaf in self._leaves.items():
            leaf.detach().copy_(saved.tensors[name])
            moments = {m: torch.empty_like(leaf).detach().copy_(saved.tensors[f"{name}.{m}"]) for m in _MOMENTS}
            self._optimizer.state[leaf] = {"step": torch.tensor(float(saved.steps)), **moments}


def trainable(adapter: LoraAdapter, seed: int) -> dict[str, SideFactors]:
    """The adapter's factors as fp32 leaves with gradients.

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
        factors[name] = SideFactors(a.requires_grad_(), b.requires_grad_(), torch.full((module.rank,), module.scale))
    return factors
