"""How much of the base update survives under a repaired adapter, measured without labels.

    retention = (L_old - L) / (L_old - L_new)

L is the token loss on text that the new base itself writes (temperature 1, seeded), so 1 is the new base's behaviour
and 0 the old one's. The denominator is an estimate of KL(new ‖ old) per token, 1 - retention the share of that
divergence which the candidate brings back. The yardstick (text, L_old, L_new) belongs to the pair of bases and is
cached in the store; a candidate costs one forward pass over the text. The text is only as long as the denominator
needs: after a strong move a few sequences measure it to two percent, after a mild one many do not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from readapt_api.contract import Contract, Digest
from readapt_api.digest import digest_of
from readapt_runtime.adapt.base import LoadedBase
from readapt_runtime.adapt.tokens import token_losses
from readapt_runtime.probe import NonFiniteAnswers
from readapt_runtime.store import Store

SEQUENCES = 64
"""At most."""
ROUND = 16
"""Sequences drawn at once."""
TOKENS = 128
SETTLED = 0.02
"""Relative standard error of the denominator at which the text is long enough."""
SEED = 20260522
_REPLAY_SEQUENCES, _REPLAY_TOKENS = 64, 64
_VERSION = 2
_ROWS_PER_PASS = 8
"""8 x 128 positions x 49,152 logits in fp32 are 200 MB."""


class Yardstick(Contract):
    """The sampled text of one pair of bases and what both bases lose on it."""

    old_base: Digest
    new_base: Digest
    version: Literal[1] = 1
    seed: int
    tokens: tuple[tuple[int, ...], ...]
    """Sampled ids per sequence, without the start token."""
    old_losses: tuple[float, ...]
    """Mean nats per token of each sequence under the old base."""
    new_losses: tuple[float, ...]

    def part(self, sequences: int) -> Yardstick:
        """The first ``sequences`` of it, for the trials of a search."""
        return self.model_copy(
            update={
                "tokens": self.tokens[:sequences],
                "old_losses": self.old_losses[:sequences],
                "new_losses": self.new_losses[:sequences],
            }
        )

    @property
    def gap(self) -> float:
        """L_old - L_new."""
        return _mean(self.old_losses) - _mean(self.new_losses)

    @property
    def measurable(self) -> bool:
        """Whether the bases differ by at least two standard errors; otherwise a quotient says nothing."""
        return self.gap > 0 and self.gap >= 2 * self.error

    @property
    def error(self) -> float:
        """Standard error of ``gap``."""
        return _standard_error([old - new for old, new in zip(self.old_losses, self.new_losses, strict=True)])

    @property
    def settled(self) -> bool:
        """Whether more text would tell little more."""
        return len(self.tokens) >= SEQUENCES or self.error <= SETTLED * self.gap

    def longer(self, more: Yardstick) -> Yardstick:
        """Followed by ``more`` of the same pair."""
        return self.model_copy(
            update={name: getattr(self, name) + getattr(more, name) for name in ("tokens", "old_losses", "new_losses")}
        )


class ReplayText(Contract):
    """Text of the new base that tuning may learn from; drawn apart from the yardstick, which only measures."""

    tokens: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Retention:
    """A measured retention with the standard error of the quotient over sequences (delta method)."""

    value: float
    standard_error: float


def retention(yardstick: Yardstick, losses: Sequence[float]) -> Retention | None:
    """Of a candidate with these mean losses per sequence; None where the yardstick is not measurable."""
    if not yardstick.measurable:
        return None
    gap = yardstick.gap
    value = (_mean(yardstick.old_losses) - _mean(losses)) / gap
    rows = zip(yardstick.old_losses, yardstick.new_losses, losses, strict=True)
    residuals = [(old - loss) - value * (old - new) for old, new, loss in rows]
    return Retention(value, _standard_error(residuals) / gap)


def require_sound(losses: Sequence[float], who: str) -> None:
    """Raises NonFiniteAnswers."""
    if not all(map(math.isfinite, losses)):
        raise NonFiniteAnswers(f"{who} answers NaN or infinity")


def floor(minimum: float, of_copy: Retention | None) -> float | None:
    """The retention that a variant must reach: ``minimum`` of what Copy has; None where Copy keeps nothing itself."""
    return minimum * of_copy.value if of_copy is not None and of_copy.value > 0 else None


def holds(measured: Retention | None, least: float | None) -> bool:
    """Without a floor retention is reported only."""
    return least is None or measured is None or measured.value >= least


def cached_yardstick(store: Store, old: LoadedBase, new: LoadedBase, seed: int = SEED) -> Yardstick:
    """The yardstick of a pair of bases out of the store, else made and put there."""
    pair = {"old": old.digest, "new": new.digest, "dtype": new.arithmetic}
    key = digest_of({"kind": "retention", "version": _VERSION, "seed": seed, **pair})
    found = store.read_result(key, Yardstick)
    if found is None:
        found = make_yardstick(old, new, seed, ROUND)
        while not found.settled:
            # Text drawn apart, as another seed gives it: the first part stays what it was.
            found = found.longer(make_yardstick(old, new, seed + len(found.tokens) * 1000, ROUND))
        store.write_result(key, found)
    return found


def cached_replay(store: Store, new: LoadedBase, seed: int = SEED + 1) -> ReplayText:
    """The replay text of a new base out of the store, else drawn and put there."""
    key = digest_of({"kind": "replay", "version": _VERSION, "new": new.digest, "dtype": new.arithmetic, "seed": seed})
    found = store.read_result(key, ReplayText)
    if found is None:
        drawn = sample(new, _REPLAY_SEQUENCES, _REPLAY_TOKENS, seed)
        found = ReplayText(tokens=tuple(tuple(row) for row in drawn.tolist()))
        store.write_result(key, found)
    return found


def make_yardstick(
    old: LoadedBase, new: LoadedBase, seed: int = SEED, sequences: int = ROUND, length: int = TOKENS
) -> Yardstick:
    """Samples from the new base and measures both bases on it. Raises NonFiniteAnswers."""
    text = sample(new, sequences, length, seed)
    rows = tuple(tuple(row) for row in text.tolist())
    old_losses, new_losses = (tuple(text_losses(base, rows)) for base in (old, new))
    require_sound(new_losses, "the new base")
    require_sound(old_losses, "the old base")
    return Yardstick(
        old_base=old.digest,
        new_base=new.digest,
        seed=seed,
        tokens=rows,
        old_losses=old_losses,
        new_losses=new_losses,
    )


@torch.inference_mode()
def sample(base: LoadedBase, sequences: int, length: int, seed: int) -> Tensor:
    """[sequences, length] ids on the CPU, drawn at temperature 1 from the start token on; EOS ends no sequence."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.full((sequences, 1), base.start, dtype=torch.long, device=base.device)
    drawn, cache = [], None
    for _ in range(length):
        output = base.model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        chosen = _draw(output.logits[:, -1].float(), generator)
        drawn.append(chosen)
        tokens = chosen.to(base.device)
    return torch.cat(drawn, dim=1)


def _draw(logits: Tensor, generator: torch.Generator) -> Tensor:
    """[rows, vocab] -> [rows, 1] ids at temperature 1, on the CPU, by inverting the distribution function.

    One random number per row: torch.multinomial draws one per vocabulary entry and takes longer than the model. A sum
    along a row has no order that a GPU keeps to.
    """
    cumulated = logits.softmax(-1).cpu().cumsum(-1)
    point = torch.rand(logits.shape[0], 1, generator=generator) * cumulated[:, -1:]
    return torch.searchsorted(cumulated, point, right=True).clamp_max(logits.shape[-1] - 1)


@torch.inference_mode()
def text_losses(base: LoadedBase, rows: Sequence[Sequence[int]]) -> list[float]:
    """Mean nats per token of each sequence under the base with whatever is attached to it; equal lengths."""
    losses: list[float] = []
    for begin in range(0, len(rows), _ROWS_PER_PASS):
        losses += text_loss(base, rows[begin : begin + _ROWS_PER_PASS]).double().tolist()
    return losses


def text_loss(base: LoadedBase, rows: Sequence[Sequence[int]]) -> Tensor:
    """[rows] mean nats per token, in one pass, with gradient."""
    targets = torch.tensor([list(row) for row in rows], device=base.device)
    starts = torch.full((targets.shape[0], 1), base.start, device=base.device)
    logits = base.model(input_ids=torch.cat([starts, targets[:, :-1]], dim=1), use_cache=False).logits
    return token_losses(logits, targets).mean(1)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _standard_error(values: Sequence[float]) -> float:
    """Of the mean; infinite for fewer than two values."""
    if len(values) < 2:
        return math.inf
    mean = _mean(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
