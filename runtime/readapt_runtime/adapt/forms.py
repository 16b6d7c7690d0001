"""Forms of answers: what a pair is asked for.

A form turns examples into answers, for whatever is attached to the base at that moment. Next: ``comparison`` keeps the
answers, ``measure`` turns them into scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from readapt_api.adaptation import Metric
from readapt_runtime.adapt.base import LoadedBase
from readapt_runtime.adapt.data import Example, Splits
from readapt_runtime.adapt.generation import complete
from readapt_runtime.adapt.scoring import choices_of, prepare
from readapt_runtime.adapt.tokens import encode, mean_losses

MOST_TOKENS = 256
"""Of a greedy completion."""
UNLABELLED_TOKENS = 64
"""The same where no reference says how long answers are."""

Answer = str | float


class Form(Protocol):
    """How a pair answers."""

    @property
    def name(self) -> str:
        """Equal names give equal answers of one pair to the same examples: part of the cache's key."""

    def ask(self, base: LoadedBase, examples: Sequence[Example]) -> Sequence[Answer]: ...


@dataclass(frozen=True, slots=True)
class LikeliestChoice:
    """The likeliest of the choices."""

    choices: tuple[str, ...]

    @property
    def name(self) -> str:
        return "choice"

    def ask(self, base: LoadedBase, examples: Sequence[Example]) -> list[str]:
        questions = prepare(base, [e.prompt for e in examples], self.choices)
        return [self.choices[index] for index in choices_of(base, questions)]


@dataclass(frozen=True, slots=True)
class GreedyText:
    """The greedy completion."""

    limit: int
    """Tokens, the end counted: an answer of so many has no end."""

    @property
    def name(self) -> str:
        return f"greedy-{self.limit}"

    def ask(self, base: LoadedBase, examples: Sequence[Example]) -> list[str]:
        return complete(base, [e.prompt for e in examples], self.limit)


@dataclass(frozen=True, slots=True)
class ReferenceLoss:
    """Nats per token of the reference completion and its end."""

    @property
    def name(self) -> str:
        return "loss"

    def ask(self, base: LoadedBase, examples: Sequence[Example]) -> list[float]:
        losses: list[float] = mean_losses(base, encode(base, examples)).tolist()
        return losses


def form_of(metric: Metric, splits: Splits, base: LoadedBase) -> Form:
    """What the metric asks for, given the data; the base's tokenizer says how long completions may get."""
    match metric:
        case Metric.TOKEN_LOSS:
            return ReferenceLoss()
        case Metric.ACCURACY:
            return LikeliestChoice(splits.choices)
        case Metric.AGREEMENT if splits.has_labels:
            return LikeliestChoice(splits.choices)
        case _:
            return GreedyText(_longest(splits, base))


def _longest(splits: Splits, base: LoadedBase) -> int:
    """Tokens of the longest completion of train with its end, within bounds."""
    rows = encode(base, splits.train) if splits.labelled else []
    return min(MOST_TOKENS, max((len(row.ids) - row.context for row in rows), default=UNLABELLED_TOKENS))
