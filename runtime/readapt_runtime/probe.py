"""What an adapter does to a few short prompts: the fingerprint that a serving pod measures again.

In: a base model and a variant. Out: ``Probe`` (probe.json beside the variant). Next: a pod that holds the same weights
over the same base sees the same shifts of log-probabilities; inert, wrong or stale weights do not pass. Computed with
transformers and PEFT alone, so that a mistake of the serving engine cannot confirm itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from readapt_api.artifacts import Probe, ProbePrompt
from readapt_api.errors import Terminal

PROMPTS = 4
TOP_TOKENS = 32
MIN_TOKENS = 4
MAX_TOKENS = 48
CANDIDATES = 24
_INERT = 1e-4
"""Largest shift, in nats, of an adapter that does nothing: float32 noise of a forward pass is about 1e-5."""

GENERIC_TEXTS = (
    "The capital of France is",
    "Question: How do I change the address of my account?\nAnswer:",
    "def fibonacci(n):\n    if n < 2:\n        return",
    "Once upon a time there was a small village where",
    "The three most important things to remember are",
    "Translate to German: Good morning, how are you?\nGerman:",
    "Sentence: The film was far too long and quite dull.\nSentiment:",
    "2, 4, 8, 16, 32,",
    "Dear Sir or Madam, I am writing to",
    "In physics, the law of conservation of energy states that",
    "My card was declined at the supermarket yesterday and",
    "Category of the following message: I lost my phone.\nCategory:",
    "To make a good cup of tea you first",
    "The weather forecast for tomorrow says that",
    "List of countries in alphabetical order: Albania,",
    "Summary of the meeting: we agreed that",
)


class InertAdapter(Terminal):
    """The adapter changes no answer: nobody could tell whether it is served."""


class NonFiniteAnswers(Terminal):
    """With the adapter, or even without it, the base answers NaN or infinity."""


@dataclass(frozen=True, slots=True)
class _Shift:
    tokens: tuple[int, ...]
    values: torch.Tensor  # [vocab] float64, log p(adapter) - log p(base)

    @property
    def strength(self) -> float:
        return float(self.values.abs().max())


def candidate_prompts(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str] = ()) -> list[list[int]]:
    """Token ids of up to CANDIDATES distinct prompts: ``texts`` (of the adapter's data) first, then generic ones.

    Each has MIN_TOKENS to MAX_TOKENS ids; longer texts keep their end, where the answer begins.
    """
    prompts: dict[tuple[int, ...], None] = {}
    for text in (*texts, *GENERIC_TEXTS):
        ids = tuple(tokenizer(text).input_ids)[-MAX_TOKENS:]
        if len(ids) >= MIN_TOKENS:
            prompts[ids] = None
    return [list(ids) for ids in prompts][:CANDIDATES]


def record(model: PreTrainedModel, adapter: Path | PeftModel, candidates: Sequence[Sequence[int]]) -> Probe:
    """The probe of an adapter over ``model``, its float32 base.

    ``adapter`` is a PEFT folder, or a PeftModel that already wraps ``model``. Of the candidates (token ids, from
    ``candidate_prompts``) the PROMPTS with the largest shift are kept; each lists the TOP_TOKENS tokens that move
    most. The model is left as it was found. Raises InertAdapter when no prompt moves,
    NonFiniteAnswers when one is answered by NaN or infinity.
    """
    if isinstance(adapter, PeftModel):
        return _record(adapter, candidates)
    with warnings.catch_warnings():
        # PEFT 0.21 asks for a property under the name that transformers 5 has deprecated.
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)
        wrapped = PeftModel.from_pretrained(model, str(adapter))
    try:
        return _record(wrapped, candidates)
    finally:
        wrapped.unload()


def _record(model: PeftModel, candidates: Sequence[Sequence[int]]) -> Probe:
    training = model.training
    model.eval()
    shifts = sorted((_measure(model, ids) for ids in candidates), key=lambda s: -s.strength)[:PROMPTS]
    model.train(training)
    if not shifts or shifts[0].strength < _INERT:
        raise InertAdapter("the adapter does not change the log-probabilities of any probe prompt")
    return Probe(prompts=tuple(_describe(shift) for shift in shifts if shift.strength >= _INERT))


@torch.inference_mode()
def _measure(model: PeftModel, ids: Sequence[int]) -> _Shift:
    """One prompt without padding, so that no mask is involved."""
    tokens = torch.tensor([list(ids)], device=model.device)
    with_adapter = model(input_ids=tokens, use_cache=False).logits[0, -1].double().log_softmax(-1)
    with model.disable_adapter():
        alone = model(input_ids=tokens, use_cache=False).logits[0, -1].double().log_softmax(-1)
    if not bool(alone.isfinite().all()):
        raise NonFiniteAnswers("the base answers NaN or infinity")
    if not bool(with_adapter.isfinite().all()):
        raise NonFiniteAnswers("the adapter makes the base answer NaN or infinity")
    return _Shift(tuple(ids), (with_adapter - alone).cpu())


def _describe(shift: _Shift) -> ProbePrompt:
    top = torch.topk(shift.values.abs(), min(TOP_TOKENS, shift.values.numel())).indices
    return ProbePrompt(
        token_ids=shift.tokens,
        top_ids=tuple(int(i) for i in top),
        shift=tuple(round(float(shift.values[i]), 6) for i in top),
    )
