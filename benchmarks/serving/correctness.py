"""The gate before any speed: greedy tokens of a mixed batch against transformers + PEFT, in float32."""

from __future__ import annotations

from pathlib import Path

import torch
from readapt_engine import build
from workloads import Workload

from readapt_runtime.engine.core import Request, SamplingParams, Token
from readapt_runtime.model.config import read_config
from readapt_runtime.server.tokens import Tokens
from readapt_testing.tiny_llama import Oracle

OUTPUT_TOKENS = 8


def first_difference(base: Path, adapters: list[Path]) -> str:
    """Two requests to the base and to each adapter, all in one batch; empty when every answer is the oracle's."""
    engine, variants = build(base, adapters, torch.float32)
    targets = [None, *adapters] * 2
    size = read_config(base).vocab_size
    stops = Tokens(base, size).stop_ids
    workload = Workload("gate", (), requests=len(targets), prompt_tokens=24)
    prompts = workload.prompts(min(size, 40_000))
    answers: list[list[int]] = [[] for _ in targets]
    for variant, prompt, answer in zip([None, *variants] * 2, prompts, answers, strict=True):

        def keep(event: object, answer: list[int] = answer) -> None:
            if isinstance(event, Token):
                answer.append(event.token_id)

        engine.add(Request(tuple(prompt), SamplingParams(OUTPUT_TOKENS, stop_ids=stops), keep, variant))
    while engine.has_work:
        engine.step()
    oracle = Oracle(base)
    for folder, prompt, answer in zip(targets, prompts, answers, strict=True):
        try:
            oracle.assert_greedy(folder, prompt, answer, OUTPUT_TOKENS)
        except AssertionError as error:
            return f"{folder.name if folder else 'base'}: {error}"
    return ""
