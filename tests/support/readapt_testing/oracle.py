"""What base and variant answer, computed by transformers and PEFT: the independent judge of served answers."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

NEAR_TIE = 1e-3


@dataclass(frozen=True, slots=True)
class Expected:
    """A greedy answer and how clear it was."""

    text: str
    margin: float
    """The smallest distance of the two best log-probabilities on the way."""


class Pair:
    """A base folder with a PEFT folder (or none) on it, fp32."""

    def __init__(self, base: Path, variant: Path | None) -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(base)
        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        with warnings.catch_warnings():
            # PEFT 0.21 asks transformers 5.23 for an attribute that the latter has renamed.
            warnings.filterwarnings("ignore", category=FutureWarning)
            self._model: Any = (PeftModel.from_pretrained(model, variant) if variant else model).eval()

    def answers(self, prompts: Sequence[str], max_tokens: int) -> dict[str, Expected]:
        """Prompt to answer."""
        return {prompt: self._answer(prompt, max_tokens) for prompt in prompts}

    @torch.no_grad()
    def _answer(self, prompt: str, max_tokens: int) -> Expected:
        ids = self._tokenizer(prompt)["input_ids"]
        start, margin = len(ids), float("inf")
        while len(ids) < start + max_tokens:
            best = self._model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1).topk(2)
            margin = min(margin, float(best.values[0] - best.values[1]))
            token = int(best.indices[0])
            if token == self._tokenizer.eos_token_id:
                break
            ids.append(token)
        return Expected(self._tokenizer.decode(ids[start:]), margin)
