"""The gate before any speed: greedy tokens of a mixed batch against transformers + PEFT, in float32."""

from __future__ import annotations

from pathlib import Path

import torch
from workloads import Workload

from readapt_runtime.engine.core import Request, SamplingParams, Token, Variant
from readapt_runtime.engine.engine import Engine, EngineLimits
from readapt_runtime.engine.pool import PageLayout, PagePool
from readapt_runtime.lora_format import read_adapter
from readapt_runtime.model.adapter_image import pack_adapter
from readapt_runtime.model.backends import Bounds, choose_backends, choose_ops
from readapt_runtime.model.config import read_config
from readapt_runtime.model.decoder import Decoder
from readapt_runtime.model.weights import load_weights
from readapt_testing.tiny_llama import Oracle

OUTPUT_TOKENS = 8


def first_difference(base: Path, adapters: list[Path]) -> str:
    """Two requests to the base and to each adapter, all in one batch; empty when every answer is the oracle's."""
    config, cpu = read_config(base), torch.device("cpu")
    ops = choose_ops(config, torch.float32, cpu)
    weights = load_weights(base, config, torch.float32, cpu, ops)
    pool = PagePool(PageLayout.of(config), 1 << 30, torch.float32, cpu)
    engine = Engine(Decoder(weights, choose_backends(config, ops, pool, Bounds())), pool, EngineLimits())
    targets = [None, *adapters] * 2
    prompts = Workload("gate", (), requests=len(targets), prompt_tokens=24).prompts()
    answers: list[list[int]] = [[] for _ in targets]
    for folder, prompt, answer in zip(targets, prompts, answers, strict=True):

        def keep(event: object, answer: list[int] = answer) -> None:
            if isinstance(event, Token):
                answer.append(event.token_id)

        variant = None
        if folder is not None:
            packed = pack_adapter(
                read_adapter(folder, config.module_shapes).modules, config, pool.layout.elements, torch.float32
            )
            variant = Variant(folder.name, f"sha256:{'0' * 64}", packed)
        engine.add(Request(tuple(prompt), SamplingParams(OUTPUT_TOKENS), keep, variant))
    while engine.has_work:
        engine.step()
    oracle = Oracle(base)
    for folder, prompt, answer in zip(targets, prompts, answers, strict=True):
        try:
            oracle.assert_greedy(folder, prompt, answer, OUTPUT_TOKENS)
        except AssertionError as error:
            return f"{folder.name if folder else 'base'}: {error}"
    return ""
