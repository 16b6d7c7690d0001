"""α and β by gradient descent: one pair for the whole model, or one per group of successive layers.

The run-time scales of the search are differentiable, so a step costs one forward and one backward pass over the search
examples and the part of the retention text; the weights are constants. Where retention is below its floor, the gradient
of what is missing is added, PENALTY nats for all of it. The best points on the way are folded and judged as those of
the search are.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from starts import MIN_RETENTION, Ground, Points, Start, Trial, layer_of, settle
from torch import Tensor

from readapt_runtime.adapt.base import LoadedBase
from readapt_runtime.adapt.factors import attached
from readapt_runtime.adapt.retention import Yardstick, floor, retention, text_loss
from readapt_runtime.adapt.search import ALPHA_RANGE, BETA_RANGE, COPY, Measured, Point, SideBySide
from readapt_runtime.adapt.tokens import Encoded, answer_losses
from readapt_runtime.adapt.trial import Meter
from readapt_runtime.lora_format import LoraAdapter
from readapt_runtime.lowrank import LowRank

_T = TypeVar("_T")
STEPS, RATE = 6, 0.1
"""Adam's rate is about how far a scalar goes in a step."""
PENALTY = 10.0
_ROWS, _SEQUENCES = 16, 4
"""Of one pass; all its activations are kept for the way back."""


class Scalars:
    """``values`` [groups, 2] are α and β of each group; the factors are an adapter and the drift, side by side."""

    def __init__(self, base: LoadedBase, adapter: LoraAdapter, drift: Mapping[str, LowRank], groups: int) -> None:
        self._base, self._adapter = base, adapter
        self._factors = SideBySide(adapter, drift, base).factors
        self._layers = 1 + max(map(layer_of, adapter.modules))
        self.values = torch.tensor([[COPY.alpha, COPY.beta]] * groups, requires_grad=True)

    @property
    def points(self) -> Points:
        return tuple(Point(alpha, beta) for alpha, beta in self.values.tolist())

    def answer_gradient(self, rows: Sequence[Encoded]) -> tuple[list[float], Tensor]:
        """The loss of each row, and the gradient of their mean [groups, 2]."""
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
        losses, total = [0.0] * len(rows), torch.zeros_like(self.values)
        for batch in _batches(order, _ROWS):
            found, gradient = self._gradient([rows[i] for i in batch], answer_losses)
            for i, loss in zip(batch, found, strict=True):
                losses[i] = loss
            total += gradient / len(rows)
        return losses, total

    def retention_gradient(self, part: Yardstick) -> tuple[list[float], Tensor]:
        """The loss of each sequence of the text, and the gradient of retention [groups, 2]."""
        losses: list[float] = []
        total = torch.zeros_like(self.values)
        for batch in _batches(part.tokens, _SEQUENCES):
            found, gradient = self._gradient(batch, text_loss)
            losses += found
            total -= gradient / len(part.tokens) / part.gap
        return losses, total

    def _gradient(self, rows: Sequence[Any], losses: Callable[..., Tensor]) -> tuple[list[float], Tensor]:
        """The loss of each row, and the gradient of their sum."""
        self._place()
        with attached(self._base.model, self._factors):
            found = losses(self._base, rows)
        (gradient,) = torch.autograd.grad(found.sum(), self.values)
        return found.double().tolist(), gradient

    def _place(self) -> None:
        for name, module in self._adapter.modules.items():
            side = self._factors[name]
            alpha, beta = self.values[layer_of(name) * len(self.values) // self._layers]
            drift = beta.expand(side.a.shape[0] - module.rank)
            side.scale = torch.cat([(alpha * module.scale).expand(module.rank), drift])


def descend(groups: int, ground: Ground) -> Start:
    """STEPS steps of Adam from Copy, within the box of the search."""
    meter = ground.meter()
    scalars = Scalars(ground.move.new, ground.adapter, ground.move.drift, groups)
    optimizer = torch.optim.Adam([scalars.values], lr=RATE)
    trials = []
    for _ in range(STEPS):
        measured, scalars.values.grad = _look(ground, meter, scalars)
        trials.append(Trial(scalars.points, measured))
        optimizer.step()
        with torch.no_grad():
            for column, box in enumerate((ALPHA_RANGE, BETA_RANGE)):
                scalars.values[:, column].clamp_(*box)
    return settle(ground, ground.adapter, meter, trials)


def _look(ground: Ground, meter: Meter, scalars: Scalars) -> tuple[Measured, Tensor]:
    """What the search would measure, and which way is up."""
    losses, gradient = scalars.answer_gradient(meter.rows)
    kept = None
    if floor(MIN_RETENTION, ground.of_copy) is not None:
        text, upwards = scalars.retention_gradient(meter.part)
        kept = retention(meter.part, text)
        meter.floor = floor(MIN_RETENTION, kept) if meter.floor is None else meter.floor
        if kept is not None and meter.floor is not None and kept.value < meter.floor:
            gradient = gradient - PENALTY * upwards
    alpha, beta = (
        statistics.fmean(values) for values in zip(*((p.alpha, p.beta) for p in scalars.points), strict=True)
    )
    return Measured(Point(alpha, beta), tuple(losses), None if kept is None else kept.value, meter.floor), gradient


def _batches(rows: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    return (rows[begin : begin + size] for begin in range(0, len(rows), size))


WAYS: Mapping[str, Callable[[Ground], Start]] = {
    "gradient, 1 pair": partial(descend, 1),
    "gradient, 3 pairs by depth": partial(descend, 3),
}
