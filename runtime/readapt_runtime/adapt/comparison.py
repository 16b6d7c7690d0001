"""Runs the gate: the old and the new pair answer the same questions until the gate decides.

A pair is a base with what is attached to it. Its answers are a stream in the fixed order of the questions, computed
as far as someone looks, and kept in the store under (pair, data, form of the answers), so that a second Job, a second
rung or a second adapter version does not ask the old pair again.
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
from readapt_runtime.adapt.forms import Answer, Form
from readapt_runtime.adapt.measure import Measure, mean
from readapt_runtime.adapt.scoring import METRIC_VERSION
from readapt_runtime.lora_format import LoraAdapter
from readapt_runtime.store import Store

_PASS_QUESTIONS = 256
"""Questions of one call; their batches are cut by length."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A base and an adapter; None stands for the base alone (a checkpoint that is judged as it is)."""

    base: LoadedBase
    adapter: LoraAdapter | None

    def answer(self, form: Form, examples: Sequence[Example]) -> list[Answer]:
        """One answer per example."""
        factors = {} if self.adapter is None else side_factors(self.adapter, self.base)
        with attached(self.base.model, factors):
            return list(form.ask(self.base, examples))


class Answers(Contract):
    """What a pair answered, as far as it was asked; an entry of the store."""

    answers: tuple[Answer, ...] = ()


@dataclass(frozen=True, slots=True)
class AnswerCache:
    """Where the answers of one pair to one list of questions are kept."""

    store: Store
    key: Digest

    @classmethod
    def of(cls, store: Store, variant: Digest, base: LoadedBase, data: Digest, part: str, form: Form) -> AnswerCache:
        """``variant`` names the pair, ``part`` the list of questions that follows from the data."""
        document = {"kind": "answers", "metric": METRIC_VERSION, "variant": variant, "base": base.digest}
        question = {"data": data, "part": part, "form": form.name}
        return cls(store, digest_of({**document, "dtype": base.arithmetic, **question}))

    def load(self) -> tuple[Answer, ...]:
        found = self.store.read_result(self.key, Answers)
        return () if found is None else found.answers

    def save(self, answers: Sequence[Answer]) -> None:
        self.store.write_result(self.key, Answers(answers=tuple(answers)))


class AnswerStream:
    """The answers of one pair to a list of examples, in the order of the list, computed on demand."""

    def __init__(self, pair: Pair, examples: Sequence[Example], form: Form, cache: AnswerCache | None = None) -> None:
        self.examples = examples
        self._pair = pair
        self._form = form
        self._cache = cache
        self._answers: list[Answer] = [] if cache is None else list(cache.load()[: len(examples)])

    def first(self, count: int) -> list[Answer]:
        """The first ``count`` answers; what was asked stays asked when this process is stopped."""
        while len(self._answers) < count:
            begin = len(self._answers)
            self._answers += self._pair.answer(self._form, self.examples[begin : min(count, begin + _PASS_QUESTIONS)])
            if self._cache is not None:
                self._cache.save(self._answers)
        return self._answers[:count]

    def all(self) -> list[Answer]:
        return self.first(len(self.examples))


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the gate saw and decided."""

    decision: gate.Decision
    evidence: gate.Evidence
    score: float
    reference: float
    interval: Interval
    """Of the gain, at the level that the deciding look may spend on each end."""
    samples_left: int | None
    """That were not asked because they would hardly have made it pass."""
    samples_needed: int | None


def compare(
    reference: AnswerStream,
    candidate: AnswerStream,
    measure: Measure,
    rule: gate.Rule,
    on_look: Callable[[float], None],
) -> Comparison:
    """Looks as the rule declares and stops at the first decision; ``on_look`` hears the share of samples seen."""
    for look in rule.looks():
        examples, answers = reference.examples[: look.samples], reference.first(look.samples)
        old = measure.scores(examples, answers, answers)
        new = measure.scores(examples, candidate.first(look.samples), answers)
        evidence = measure.evidence(old, new)
        decision = gate.decide(evidence, rule, look)
        on_look(look.samples / rule.samples)
        if decision is not gate.Decision.MORE:
            break
    return Comparison(
        decision=decision,
        evidence=evidence,
        score=mean(new),
        reference=mean(old),
        interval=Interval(lower=evidence.lower_end(look.alpha), upper=evidence.upper_end(look.alpha)),
        samples_left=rule.samples - evidence.samples if decision is gate.Decision.FUTILE else None,
        samples_needed=gate.samples_needed(evidence, rule) if decision.undecided else None,
    )
