"""Several processes compute what one computes, and what PEFT computes: logits, and so tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from readapt_runtime.engine.core import Variant
from readapt_runtime.engine.engine import Engine
from readapt_runtime.engine.limits import EngineLimits
from readapt_testing.tiny_engine import ask, run_to_idle
from readapt_testing.tiny_families import FAMILIES, Recorder, Reference, write_family, write_lora
from readapt_testing.tiny_ranks import TinyRanks, tiny_ranks

Answers = dict[tuple[int, ...], tuple[list[int], torch.Tensor]]
NO_DIVISOR = 263
"""Rows of a vocabulary that no number of ranks divides."""
LIMITS = EngineLimits(max_batch_tokens=24, max_running=8)
"""Prompts are computed in pieces, beside sequences that decode."""
ROUND_OFF = {"rtol": 2e-4, "atol": 2e-4}
ADAPTERS: dict[str, dict[str, Any]] = {
    "r4": {"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"]},
    "r8": {"r": 8, "rank_pattern": {"o_proj": 5, "up_proj": 3}},
    "r64": {"r": 64, "use_rslora": True, "lora_alpha": 3},
}
CASES = {
    "tied, two kv heads on 2": (FAMILIES["llama"], 2),
    "untied, biased, vocabulary padded, on 4": (
        {**FAMILIES["llama untied, biased, llama3"], "vocab_size": NO_DIVISOR},
        4,
    ),
    "tied, two kv heads copied to 4, vocabulary padded": ({**FAMILIES["qwen2"], "vocab_size": NO_DIVISOR}, 4),
    "head norms, one kv head copied to 2": (FAMILIES["qwen3 untied, biased, yarn"], 2),
    "six heads on 2": (FAMILIES["qwen2 untied, yarn"], 2),
}


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def pod(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TinyRanks, Path]]:
    """Ranks, and the folder that their base and adapters are in; adapters from rank 64 on are fully sharded."""
    options, world = request.param
    root = tmp_path_factory.mktemp("family")
    base = write_family(root / "base", options)
    for seed, (name, settings) in enumerate(ADAPTERS.items()):
        write_lora(root / name, base, seed, **settings)
    with tiny_ranks(base, world, LIMITS, full_shard_rank=64) as ranks:
        yield ranks, root


def _prompts() -> dict[tuple[int, ...], str | None]:
    """Short and long ones; of the base and of every adapter at least two."""
    names = [None, *ADAPTERS] * 2
    return {tuple((7 * i + 3 * j) % 250 for j in range(3 + 6 * i)): name for i, name in enumerate(names)}


def _answers(engine: Engine, variants: dict[str | None, Variant | None]) -> Answers:
    recorder = Recorder(engine._model)
    engine._model = recorder
    asked = {p: ask(engine, list(p), variants[name], 6)[1] for p, name in _prompts().items()}
    run_to_idle(engine)
    engine._model = recorder.model
    return {p: (answer.tokens, torch.stack(recorder.logits[p])) for p, answer in asked.items()}


def test_logits_and_greedy_tokens_are_those_of_one_process_and_of_peft(pod: tuple[TinyRanks, Path]) -> None:
    several, root = pod
    found = _answers(several.engine, {None: None, **{name: several.variant(root / name) for name in ADAPTERS}})
    with tiny_ranks(several.base, 1, LIMITS) as one:
        expected = _answers(one.engine, {None: None, **{name: one.variant(root / name) for name in ADAPTERS}})
    judges = {name: Reference(several.base, root / name if name else None) for name in (None, *ADAPTERS)}
    for prompt, name in _prompts().items():
        tokens, logits = found[prompt]
        assert tokens == expected[prompt][0]
        torch.testing.assert_close(logits, expected[prompt][1], **ROUND_OFF)
        torch.testing.assert_close(logits, judges[name].logits(prompt, tokens), **ROUND_OFF)


def test_a_place_in_the_pool_is_used_again_and_again(pod: tuple[TinyRanks, Path]) -> None:
    """Adapters and KV take each other's pages; what workers have in them is what rank 0 has there."""
    several, root = pod
    several.engine.memory.clear()  # as below: a cached beginning is another shape of step
    first = _answers(several.engine, {None: None, **{name: several.variant(root / name) for name in ADAPTERS}})
    for _ in range(3):
        several.engine.memory.clear()
        spare = several.engine.pool.allocate("kv", 7)  # type: ignore[arg-type]
        again = _answers(several.engine, {None: None, **{name: several.variant(root / name) for name in ADAPTERS}})
        several.engine.pool.release(spare)
        for prompt, (tokens, logits) in first.items():
            assert again[prompt][0] == tokens
            torch.testing.assert_close(again[prompt][1], logits, rtol=0, atol=0)
