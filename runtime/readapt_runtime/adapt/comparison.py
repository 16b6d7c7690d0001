"""Runs the gate: the old and the new pair answer the same questions until the gate decides.

A pair is a base with what is attached to it. Its answers are a stream in the fixed order of the questions, computed
as far as someone looks, and kept in the store under (pair, data, metric), so that a second Job, a second rung or a
second adapter version does not ask the old pair again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from readapt_api.contract import Contract, Digest
from readapt_api.digest import digest_of
from readapt_api.jobs import Interval
from readapt_runtime.adapt import gate
from readapt_runtime.adapt.base import LoadedBase
from readapt_runtime.adapt.data import Example
from readapt_runtime.adapt.factors import attached, side_factors
from readapt_runtime.adapt.scoring import METRIC_VERSION, choices_of, prepare
from readapt_runtime.lora_format import LoraAdapter
from readapt_runtime.store import Store

_PASS_QUESTIONS = 256
"""Questions of one call; their batches are cut by length."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A base and an adapter; None stands for the base alone (a checkpoint that is judged as it is)."""

    base: LoadedBase
    adapter: LoraAdapter | None

    def choose(self, prompts: Sequence[str], choices: Sequence[str]) -> list[int]:
        """The index of the choice that is the likeliest after each prompt."""
        questions = prepare(self.base, prompts, choices)
        factors = {} if self.adapter is None else side_factors(self.adapter, self.base.dtype)
        with attached(self.base.model, factors):
            return choices_of(self.base, questions)


class Answers(Contract):
    """What a pair answered, as far as it was asked; an entry of the store."""

    choices: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class AnswerCache:
    """Where the answers of one pair to one list of questions are kept."""

    store: Store
    key: Digest

    @classmethod
    def of(cls, store: Store, variant: Digest, base: LoadedBase, data: Digest, part: str) -> AnswerCache:
        """``variant`` names the pair, ``part`` the list of questions that follows from the data."""
        document = {"kind": "answers", "metric": METRIC_VERSION, "variant": variant, "base": base.digest}
        return cls(store, digest_of({**document, "dtype": str(base.dtype), "data": data, "part": part}))

    def load(self) -> tuple[int, ...]:
        found = self.store.read_result(self.key, Answers)
        return () if found is None else found.choices

    def save(self, choices: Sequence[int]) -> None:
        self.store.write_result(self.key, Answers(choices=tuple(choices)))


class AnswerStream:
    """The answers of one pair to a list of examples, right or not, in the order of the list, computed on demand."""

    def __init__(
        self, pair: Pair, examples: Sequence[Example], choices: Sequence[str], cache: AnswerCache | None = None
    ) -> None:
        self._pair = pair
        self._examples = examples
        self._labels = choices
        self._cache = cache
        self._choices: list[int] = [] if cache is None else list(cache.load()[: len(examples)])

    def first(self, count: int) -> list[bool]:
        """Whether each of the first ``count`` answers is right; a completion that train never has cannot be."""
        missing = len(self._choices) < count
        while len(self._choices) < count:
            begin = len(self._choices)
            prompts = [e.prompt for e in self._examples[begin : min(count, begin + _PASS_QUESTIONS)]]
            self._choices += self._pair.choose(prompts, self._labels)
        if missing and self._cache is not None:
            self._cache.save(self._choices)
        return [self._labels[c] == e.completion for c, e in zip(self._choices[:count], self._examples, strict=False)]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the gate saw and decided."""

    decision: gate.Decision
    counts: gate.Counts
    score: float
    reference: float
    interval: Interval
    """Of score - reference, at the level that the deciding look may spend on each end."""
    samples_needed: int | None


def compare(
    reference: AnswerStream, candidate: AnswerStream, rule: gate.Rule, on_look: Callable[[float], None]
) -> Comparison:
    """Looks as the rule declares and stops at the first decision; ``on_look`` hears the share of samples seen."""
    for look in rule.looks():
        old, new = reference.first(look.samples), candidate.first(look.samples)
        counts = gate.Counts().add(zip(old, new, strict=True))
        decision = gate.decide(counts, rule, look)
        on_look(look.samples / rule.samples)
        if decision is not gate.Decision.MORE:
            break
    return Comparison(
        decision=decision,
        counts=counts,
        score=sum(new) / len(new),
        reference=sum(old) / len(old),
        interval=Interval(lower=gate.lower_end(counts, look.alpha), upper=gate.upper_end(counts, look.alpha)),
        samples_needed=gate.samples_needed(counts, rule) if decision is gate.Decision.MORE else None,
    )
