"""The gate before any speed: greedy tokens of a mixed batch against transformers + PEFT.

In float32, on a CPU, they are the oracle's. What is timed is bfloat16, which other kernels compute, perhaps on another
device: there every token may be less likely than the oracle's best one by no more than a bound.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from readapt_engine import CPU, build
from workloads import Workload

from readapt_runtime.engine.core import Failure, Request, SamplingParams, Token
from readapt_runtime.model.config import read_config
from readapt_runtime.server.tokens import Tokens
from readapt_testing.tiny_llama import Oracle

OUTPUT_TOKENS = 8
LEAST_LIKELY = 0.5
"""Nats by which the oracle may prefer another token to one of bfloat16; measured are up to 0.2."""


def first_difference(base: Path, adapters: list[Path], device: torch.device = CPU) -> str:
    """Two requests to the base and to each adapter, all in one batch; empty when every answer is right.

    ``device``: where what is timed computes.
    """
    oracle, targets = Oracle(base), [None, *adapters] * 2
    exact = _answers(base, adapters, torch.float32, CPU)
    rounded = _answers(base, adapters, torch.bfloat16, device)
    for folder, (prompt, answer), (_, near) in zip(targets, exact, rounded, strict=True):
        name = folder.name if folder else "base"
        try:
            oracle.assert_greedy(folder, prompt, answer, OUTPUT_TOKENS)
        except AssertionError as error:
            return f"{name}: {error}"
        for at, worse in enumerate(regrets(oracle, folder, prompt, near)):
            if not worse <= LEAST_LIKELY:
                return f"{name} in bfloat16: token {at} is {worse:.2f} nats less likely than another"
    return ""


def _answers(
    base: Path, adapters: list[Path], dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[list[int], list[int]]]:
    """(prompt, answer) of each request. Raises what a request failed with."""
    engine, variants = build(base, adapters, dtype, device)
    asked = [None, *variants] * 2
    size = read_config(base).vocab_size
    stops = Tokens(base, size).stop_ids
    prompts = Workload("gate", (), requests=len(asked), prompt_tokens=24, vocabulary=min(size, 40_000)).prompts()
    answers: list[list[int]] = [[] for _ in asked]
    failures: list[Failure] = []
    for variant, prompt, answer in zip(asked, prompts, answers, strict=True):

        def keep(event: object, answer: list[int] = answer) -> None:
            if isinstance(event, Failure):
                failures.append(event)
            if isinstance(event, Token):
                answer.append(event.token_id)

        engine.add(Request(tuple(prompt), SamplingParams(OUTPUT_TOKENS, stop_ids=stops), keep, variant))
    while engine.has_work:
        engine.step()
    for failure in failures:
        raise failure.error
    yield from zip(prompts, answers, strict=True)


@torch.no_grad()
def regrets(oracle: Oracle, adapter: Path | None, prompt: list[int], answer: list[int]) -> list[float]:
    """By how many nats each token of ``answer`` is less likely than the likeliest one after what stands before it."""
    logits = oracle.model(adapter)(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].double()
    chosen = logits.gather(1, torch.tensor(answer)[:, None])[:, 0]
    found: list[float] = (logits.max(1).values - chosen).tolist()
    return found
