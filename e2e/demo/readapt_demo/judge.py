"""Decides from the outside whether an answer came from a base and a variant that belong together.

Expected texts are computed with transformers and PEFT from the artifacts in the store, not with the server.
A mixed set is an answer that contradicts its headers, or whose text is neither that of the old nor of the new pair,
on prompts where these two differ. A prompt on which two tokens come nearly equal somewhere is not judged by its text:
the order of additions may decide it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from readapt_demo.traffic import MAX_TOKENS, Answer


@dataclass(frozen=True, slots=True)
class Pair:
    """A base folder and, for an adapter, its variant's folder, digest and the revision that serves both."""

    revision: str
    base: Path
    variant: Path | None = None
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Greedy:
    """A greedy text and how clear it was."""

    text: str
    margin: float
    """The smallest distance of the two best log-probabilities on the way, in nats."""


NEAR_TIE = 1e-3
Expected = Mapping[tuple[str, str, str], Greedy]
"""(revision, model, prompt) to text."""


def expected_texts(pairs: Mapping[str, Sequence[Pair]], prompts: Sequence[str]) -> dict[tuple[str, str, str], Greedy]:
    """Greedy texts in fp32 of every pair of every model on every prompt; one base is loaded at a time."""
    found: dict[tuple[str, str, str], Greedy] = {}
    for base in sorted({pair.base for group in pairs.values() for pair in group}):
        tokenizer = AutoTokenizer.from_pretrained(base)
        for model_name, group in pairs.items():
            for pair in (p for p in group if p.base == base):
                model: Any = AutoModelForCausalLM.from_pretrained(
                    base, dtype=torch.float32, attn_implementation="eager"
                )
                if pair.variant is not None:
                    model = PeftModel.from_pretrained(model, pair.variant)
                for prompt in prompts:
                    found[pair.revision, model_name, prompt] = _greedy(model, tokenizer, prompt)
    return found


def _greedy(model: Any, tokenizer: Any, prompt: str) -> Greedy:
    inputs = tokenizer(prompt, return_tensors="pt")
    settings = {"do_sample": False, "output_scores": True, "return_dict_in_generate": True}
    with torch.inference_mode():
        out = model.generate(**inputs, max_new_tokens=MAX_TOKENS, pad_token_id=tokenizer.eos_token_id, **settings)
    best = torch.cat(out.scores).topk(2).values
    text = tokenizer.decode(out.sequences[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return Greedy(str(text), float((best[:, 0] - best[:, 1]).min()))


def mixed_sets(answers: Iterable[Answer], pairs: Mapping[str, Sequence[Pair]], expected: Expected) -> list[str]:
    """One line per answer that belongs to no set; empty when all is well."""
    return [line for answer in answers if not answer.failed for line in _judge(answer, pairs, expected)]


def _judge(answer: Answer, pairs: Mapping[str, Sequence[Pair]], expected: Expected) -> list[str]:
    pair = next((p for p in pairs[answer.model] if p.revision == answer.revision), None)
    label = f"{answer.model}, {answer.prompt!r} ({answer.connection} connection)"
    if pair is None:
        return [f"{label}: answered by unknown revision {answer.revision!r}"]
    named = f"{answer.model}@{pair.digest}" if pair.digest else ""
    if answer.adapter != named:
        return [f"{label}: revision {answer.revision} says {answer.adapter!r}, its variant is {named!r}"]
    if not is_telling(answer, pairs, expected):
        return []
    text = expected[answer.revision, answer.model, answer.prompt].text
    if answer.text != text:
        return [f"{label}: revision {answer.revision} answered {answer.text!r}, expected {text!r}"]
    return []


def is_telling(answer: Answer, pairs: Mapping[str, Sequence[Pair]], expected: Expected) -> bool:
    """Whether all pairs of the model answer the prompt differently, and clearly."""
    revisions = {p.revision for p in pairs[answer.model]}
    texts = [expected[revision, answer.model, answer.prompt] for revision in revisions]
    return len({t.text for t in texts}) == len(texts) and all(t.margin >= NEAR_TIE for t in texts)
