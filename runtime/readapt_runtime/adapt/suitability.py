"""Whether data, adapter and old base belong together; asked before hours are spent on them.

A name does not say which base an adapter was trained on, its effect does. On its own base it answers its own task
better than the base alone. Where the gate's metric cannot tell, it makes the completions of the task likelier, and it
does so because its directions mean something there. That is held against

    the base alone      an adapter that is no better does nothing for the task
    scrambled twins     the same factors with the base's hidden units in another order, as if they had been trained on
                        another base. One that is no better than they are does what any weights of its size would do;
                        on a base that is sure of something else even that can lower the loss by a lot

An adapter that fails is refused, because a gate that compares with it would let anything pass, but only where that is
sure (see ``Effect``). What is refused wrongly is an adapter whose effect the data do not show; the gate could not have
judged it on these data either.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from readapt_runtime.adapt.base import LoadedBase
from readapt_runtime.adapt.comparison import Pair
from readapt_runtime.adapt.data import Example, Splits
from readapt_runtime.adapt.errors import NoEffect
from readapt_runtime.adapt.exam import Exam
from readapt_runtime.adapt.factors import attached, side_factors
from readapt_runtime.adapt.measure import mean
from readapt_runtime.adapt.tokens import Encoded, encode, joint_ids, mean_losses
from readapt_runtime.examples import BadData
from readapt_runtime.lora_format import LoraAdapter, LoraModule

_ANSWERS, _EXAMPLES = 96, 48
"""Looked at by the metric, and by the token loss."""
_LEAST = 8
"""Fewer examples than this say nothing."""
_TWINS = 4
_PLAIN = 0.25
"""At this share of the base's own loss no twin is needed to see that the adapter belongs here."""
_NOTHING = 0.02
"""Share of the base's own loss below which an improvement is none."""
_ERRORS = 2.0
"""Standard errors by which something is sure."""
_APART, _HALF = 2.0, 0.5
"""By the lesser of so many standard deviations of the twins' losses and this share of what the best twin improves must
the adapter improve more than that twin."""


def require_room(base: LoadedBase, splits: Splits) -> None:
    """Raises BadData for the first prompt that, with its completion, has more tokens than the model reads."""
    parts = chain(splits.train, splits.search, splits.stopping, splits.gate, (Example(p, "") for p in splits.inputs))
    # A token has at least one byte: what is shorter in bytes need not be tokenised.
    long = [text for e in parts if len((text := e.prompt + e.completion).encode()) >= base.longest]
    for text, row in zip(long, joint_ids(base, long) if long else [], strict=True):
        if len(row) >= base.longest:
            raise BadData(
                f"an example of {len(row)} tokens and an end does not fit the base, which reads {base.longest}: "
                f"{text[:60]!r}…"
            )


@dataclass(frozen=True, slots=True)
class Effect:
    """What an adapter does on its stated base to the completions of its task."""

    samples: int
    alone: float
    """Nats per token of the base alone."""
    loss: float
    """The same with the adapter."""
    error: float
    """Standard error of the improvement over the base alone."""
    twins: tuple[float, ...]
    """The same with scrambled twins; none where they were not needed."""

    @property
    def none(self) -> bool:
        """Whether the improvement over the base alone is surely less than a fiftieth of what that loses."""
        return self.alone - self.loss + _ERRORS * self.error < _NOTHING * self.alone

    @property
    def chance(self) -> bool:
        """Whether it improves about as much as its best twin; a twin that improves nothing asks for nothing."""
        best = self.alone - min(self.twins, default=self.alone)
        spread = float(torch.tensor(self.twins, dtype=torch.float64).std()) if best > 0 else 0.0
        return best > 0 and self.alone - self.loss < best + min(_APART * spread, _HALF * best)

    def __str__(self) -> str:
        twins = f", scrambled {mean(self.twins):.3f}" if self.twins else ""
        return f"token loss {self.loss:.3f}, the base alone {self.alone:.3f}{twins}"


def require_effect(pair: Pair, splits: Splits, exam: Exam) -> Effect | None:
    """Raises NoEffect. The effect of the pair's adapter on its base, where the metric alone could not tell."""
    if not splits.labelled or pair.adapter is None:
        return None
    better, said = _by_metric(pair, exam)
    if better:
        return None
    examples = (splits.search or splits.stopping)[:_EXAMPLES]
    effect = None
    if len(examples) >= _LEAST:
        effect = _measure(pair.base, pair.adapter, encode(pair.base, examples))
        said = [str(effect), *said]
    if better is None and (effect is None or not (effect.none or effect.chance)):
        return effect
    raise NoEffect(
        "on the base that it is said to be made for the adapter does no more than chance "
        f"({'; '.join(said)}): was it trained on another base, or are the data of another task?"
    )


def _by_metric(pair: Pair, exam: Exam) -> tuple[bool | None, list[str]]:
    """Whether the pair surely answers better than its base alone, or surely worse; None in between. And how they do."""
    metric, count = exam.measure.metric, min(_ANSWERS, len(exam.old.examples))
    if not metric.needs_labels or not metric.higher_is_better or count < _LEAST:
        return None, []
    own, alone = exam.scores(None, count), exam.scores(Pair(pair.base, None), count)
    gains = torch.tensor(own, dtype=torch.float64) - torch.tensor(alone, dtype=torch.float64)
    sure = _ERRORS * _standard_error(gains)
    better = True if gains.mean() > sure else False if gains.mean() < -sure else None
    return better, [f"{metric} {metric.unit.score(mean(own))}, the base alone {metric.unit.score(mean(alone))}"]


def _measure(base: LoadedBase, adapter: LoraAdapter, rows: Sequence[Encoded]) -> Effect:
    alone, own = mean_losses(base, rows), _losses(base, adapter, rows)
    plain = own.mean() < _PLAIN * alone.mean()
    twins = [] if plain else [float(_losses(base, twin, rows).mean()) for twin in _scrambled(adapter)]
    error = _standard_error(alone - own)
    return Effect(len(rows), float(alone.mean()), float(own.mean()), error, tuple(twins))


def _losses(base: LoadedBase, adapter: LoraAdapter, rows: Sequence[Encoded]) -> Tensor:
    with attached(base.model, side_factors(adapter, base)):
        return mean_losses(base, rows)


def _scrambled(adapter: LoraAdapter) -> Iterator[LoraAdapter]:
    """Twins that would be this adapter on bases whose hidden units stand in another order, one order per width."""
    for seed in range(_TWINS):
        generator = torch.Generator().manual_seed(seed)
        widths = sorted({width for m in adapter.modules.values() for width in (m.a.shape[1], m.b.shape[0])})
        orders = {width: torch.randperm(width, generator=generator) for width in widths}
        yield LoraAdapter(
            {
                name: LoraModule(name, m.a[:, orders[m.a.shape[1]]], m.b[orders[m.b.shape[0]]], m.scale)
                for name, m in adapter.modules.items()
            }
        )


def _standard_error(values: Tensor) -> float:
    """Of the mean; infinite for fewer than two values."""
    return float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.inf
