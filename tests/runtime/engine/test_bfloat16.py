"""What bfloat16 costs: log-probabilities of a mixed batch beside transformers + PEFT in float32."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from readapt_runtime.engine.core import Token
from readapt_runtime.engine.limits import EngineLimits
from readapt_runtime.model.backends import choose_ops
from readapt_runtime.model.ops import Ops, TorchOps
from readapt_testing.tiny_engine import CPU, Tiny, ask, run_to_idle
from readapt_testing.tiny_llama import quiet_peft

NAMES = (None, "r3", "r4", "r8", "r64")
PROMPTS, TOKENS = 4, 16
ROOT_MEAN_SQUARE, LARGEST = 1.25, 2.0
"""Our errors ÷ those of transformers in bfloat16, at most; stated in docs/serving.md."""


@pytest.fixture(params=["as chosen", "plain torch"])
def ops(request: pytest.FixtureRequest, tiny: Tiny) -> Ops:
    if request.param == "plain torch":
        return TorchOps(tiny.config.rms_norm_eps)
    return choose_ops(tiny.config, torch.bfloat16, CPU)


def test_log_probabilities_err_as_those_of_transformers_in_bfloat16_do(tiny: Tiny, ops: Ops) -> None:
    theirs, ours = [], []
    for name, sequence, prompt_tokens, told in _answers(replace(tiny, dtype=torch.bfloat16), ops):
        exact = _log_probs(tiny.base, tiny.folder(name), torch.float32, sequence)[prompt_tokens - 1 :]
        rounded = _log_probs(tiny.base, tiny.folder(name), torch.bfloat16, sequence)[prompt_tokens - 1 :]
        theirs += [float(a - b) for a, b in zip(rounded, exact, strict=True)]
        ours += [a - float(b) for a, b in zip(told, exact, strict=True)]

    assert len(ours) > len(NAMES) * PROMPTS * TOKENS / 2
    assert _root_mean_square(ours) <= ROOT_MEAN_SQUARE * _root_mean_square(theirs)
    assert max(map(abs, ours)) <= LARGEST * max(map(abs, theirs))


def _answers(tiny: Tiny, ops: Ops) -> list[tuple[str | None, list[int], int, list[float]]]:
    """(adapter, prompt and answer, length of the prompt, log-probabilities told), of one mixed batch."""
    engine = tiny.engine(num_pages=300, limits=EngineLimits(max_batch_tokens=48), ops=ops)
    variants = {name: tiny.variant(name) if name else None for name in NAMES}
    rng = random.Random(3)
    prompts = [[rng.randrange(256) for _ in range(rng.randrange(4, 40))] for _ in range(PROMPTS)]
    asked = [(name, p, ask(engine, p, variants[name], TOKENS, top_log_probs=0)[1]) for p in prompts for name in NAMES]
    run_to_idle(engine)
    found = []
    for name, prompt, answer in asked:
        tokens = [event for event in answer.events if isinstance(event, Token)]
        told = [token.scores.chosen for token in tokens if token.scores]
        found.append((name, prompt + [token.token_id for token in tokens], len(prompt), told))
    return found


@torch.no_grad()
def _log_probs(base: Path, adapter: Path | None, dtype: torch.dtype, sequence: list[int]) -> torch.Tensor:
    """Of every token of ``sequence`` after those before it, but the first."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    if adapter is not None:
        with quiet_peft():
            model = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False)
    logits = model.eval()(torch.tensor([sequence])).logits[0, :-1].float()
    return logits.log_softmax(-1).gather(1, torch.tensor(sequence[1:])[:, None])[:, 0]


def _root_mean_square(errors: list[float]) -> float:
    return (sum(error * error for error in errors) / len(errors)) ** 0.5
