"""Fine-tuning from one start with and without what holds it there, all for the same number of steps.

The public notes on ReLoRA (arXiv 2606.02606) say "L2", strong and then weak, and not of what. The two readings are a
pull to the start and a pull to zero; the first can be taken of the factors or of their product, which is what
``readapt_runtime.adapt.anchor`` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from unittest.mock import patch

import torch
from starts import Ground
from torch import Tensor

from readapt_runtime.adapt import training
from readapt_runtime.adapt.anchor import Anchor
from readapt_runtime.adapt.factors import SideFactors
from readapt_runtime.adapt.tokens import encode
from readapt_runtime.adapt.tuning import Evaluation, Lessons, Tuning, tune
from readapt_runtime.lora_format import LoraAdapter

STEPS = 40
RATE = 2e-4
"""That of ``adaptation.tuning``; from Copy alone 3e-4 was best (see ``strategies``)."""
COPY_RATE = 3e-4
_BATCH = 8

Pull = Callable[[Mapping[str, SideFactors]], Tensor]


class ToZero(Anchor):
    """‖s B A‖² over that of the start."""

    def __init__(self, start: Mapping[str, SideFactors]) -> None:
        super().__init__(start)
        self._start = {name: (torch.zeros_like(b), a) for name, (b, a) in self._start.items()}


class OfFactors:
    """‖A - A₀‖² + ‖B - B₀‖² over ‖A₀‖² + ‖B₀‖²; depends on how the product is split."""

    def __init__(self, start: Mapping[str, SideFactors]) -> None:
        self._start = {name: (side.a.detach().clone(), side.b.detach().clone()) for name, side in start.items()}
        self._size = sum(float(a.square().sum() + b.square().sum()) for a, b in self._start.values())

    def __call__(self, factors: Mapping[str, SideFactors]) -> Tensor:
        total = torch.zeros(())
        for name, side in factors.items():
            a, b = self._start[name]
            total = total + (side.a - a).square().sum() + (side.b - b).square().sum()
        return total / self._size


@dataclass(frozen=True, slots=True)
class Way:
    """From where, and what pulls."""

    from_copy: bool
    rate: float
    pull: Callable[[Mapping[str, SideFactors]], Pull] = Anchor
    strength: float = 1.0
    """Times the λ that ships, strong and weak."""
    replay: bool = True

    def run(self, ground: Ground, found: LoraAdapter) -> LoraAdapter:
        """``found``: what the search came to."""
        start = ground.adapter if self.from_copy else found
        ours = Tuning(max_steps=STEPS, learning_rate=self.rate, batch_size=_BATCH, seed=ground.seed)
        settings = Tuning(
            max_steps=STEPS,
            learning_rate=self.rate,
            batch_size=_BATCH,
            seed=ground.seed,
            evaluations=1,
            strong=self.strength * ours.strong,
            weak=self.strength * ours.weak,
            replay=ours.replay if self.replay else 0.0,
        )
        lessons = Lessons(encode(ground.move.new, ground.splits.train), ground.replay)
        with patch.object(training, "Anchor", self.pull):
            return tune(ground.move.new, start, _seen(0), lessons, settings, lambda step, *_: _seen(step)).adapter


def _seen(step: int) -> Evaluation:
    """The last step is kept, whatever it is worth."""
    return Evaluation(step, float(step), None, feasible=True, ready=False)


WAYS: Mapping[str, Way] = {
    "Copy, then plain tuning": Way(from_copy=True, rate=COPY_RATE, strength=0.0, replay=False),
    "found start, then tuning without a pull": Way(from_copy=False, rate=RATE, strength=0.0),
    "… pulled to the start, by product (ships)": Way(from_copy=False, rate=RATE),
    "… pulled to the start, by factors": Way(from_copy=False, rate=RATE, pull=OfFactors),
    "… pulled to zero": Way(from_copy=False, rate=RATE, pull=ToZero),
}
