"""What Copy will lose, from a few labelled examples: one forward pass of the old pair and one of the new.

Accuracy on so few examples is mostly noise; the probability that a pair gives to the right answers moves smoothly and
needs no other answers to compare with.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from readapt_api.digest import digest_path
from readapt_runtime.adapt.base import load_base
from readapt_runtime.adapt.comparison import Pair
from readapt_runtime.adapt.data import Example, read_examples
from readapt_runtime.adapt.factors import attached, side_factors
from readapt_runtime.adapt.tokens import encode, mean_losses
from readapt_runtime.drift.prediction import BY_EXAMPLES, told
from readapt_runtime.examples import BadData
from readapt_runtime.lora_format import LoraAdapter

EXAMPLES = 32
_LEAST = 8
"""Fewer examples than this say nothing."""


def few(examples: Sequence[Example]) -> list[Example]:
    """At most EXAMPLES of them, chosen by what they are and not by their order. Raises BadData for too few."""
    if len(examples) < _LEAST:
        raise BadData(f"{len(examples)} examples, at least {_LEAST} are needed to predict with")
    return sorted(examples, key=lambda e: e.rank("forecast"))[:EXAMPLES]


def losses(pair: Pair, examples: Sequence[Example]) -> Tensor:
    """[examples] nats per token of the right answers."""
    factors = {} if pair.adapter is None else side_factors(pair.adapter, pair.base)
    with attached(pair.base.model, factors):
        return mean_losses(pair.base, encode(pair.base, examples))


def likelihood(losses: Tensor) -> float:
    """Mean of exp(-loss): the geometric mean of the probabilities of an answer's tokens, within (0, 1]."""
    return float(losses.neg().exp().mean())


def from_examples(old: Path, new: Path, adapter: LoraAdapter, file: Path, device: torch.device) -> dict[str, object]:
    """What the examples of a JSON Lines file say about Copy, to be printed; one base in memory at a time.

    Raises BadData and the errors of ``load_base``.
    """
    chosen = few(read_examples(file))
    before, after = (
        likelihood(losses(Pair(load_base(folder, digest_path(folder), device=device), adapter), chosen))
        for folder in (old, new)
    )
    found = told(BY_EXAMPLES, before - after)
    return {"samples": len(chosen), "old_likelihood": before, "new_likelihood": after, **found}
