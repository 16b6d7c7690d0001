"""Steps that are computed in one call give the bits of layer after layer, in bfloat16."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from readapt_kernels.cpu.stack import Stack
from readapt_runtime.engine.engine import Model
from readapt_runtime.engine.limits import EngineLimits
from readapt_runtime.model import cpu_ops
from readapt_runtime.model.backends import choose_backends
from readapt_runtime.model.decoder import Decoder
from readapt_testing.tiny_engine import Tiny
from readapt_testing.tiny_families import FAMILIES, answer_and_logits, write_family, write_lora

CHUNKED = EngineLimits(max_batch_tokens=48, max_running=8)
LONG, TOKENS = 90, 12


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of the steps that were computed in one call, which takes products of ours whatever the processor has."""
    monkeypatch.setattr(cpu_ops, "prefers_onednn", lambda: False)
    found: list[int] = []
    run = Stack.run

    def counted(self: Stack, hidden: torch.Tensor, *operands: Any) -> torch.Tensor:
        found.append(len(hidden))
        return run(self, hidden, *operands)

    monkeypatch.setattr(Stack, "run", counted)
    return found


def layer_by_layer(config: Any, weights: Any, ops: Any, pool: Any, bounds: Any) -> Model:
    return Decoder(weights, replace(choose_backends(config, ops, pool, bounds), stack=lambda _: None))


def prompt(length: int) -> tuple[int, ...]:
    rng = random.Random(length)
    return tuple(rng.randrange(256) for _ in range(length))


@pytest.mark.parametrize("family", ["llama", "llama untied, biased, llama3", "qwen3 untied, biased, yarn", "smollm3"])
def test_one_call_and_many_give_the_same_bits(tmp_path: Path, runs: list[int], family: str) -> None:
    """Base rows and two adapters, of which one leaves modules out; free pages hold NaN; one prompt joins late."""
    base = write_family(tmp_path / "base", {**FAMILIES[family], "head_dim": 16})
    some = {"r": 3, "target_modules": ["k_proj", "o_proj", "up_proj"]}
    adapters = {"all": write_lora(tmp_path / "all", base), "some": write_lora(tmp_path / "some", base, 2, **some)}
    tiny = Tiny(base, adapters, torch.bfloat16)
    asked = {
        prompt(LONG): tiny.variant("all"),
        prompt(17): None,
        prompt(1): tiny.variant("some"),
        prompt(5): None,
    }
    together = answer_and_logits(tiny, asked, TOKENS, CHUNKED)
    assert runs.count(len(asked)) >= TOKENS - 1 - LONG // CHUNKED.max_batch_tokens
    runs.clear()
    apart = answer_and_logits(tiny, asked, TOKENS, CHUNKED, decoder=layer_by_layer)
    assert not runs
    for asked_prompt, (answer, logits) in together.items():
        assert answer == apart[asked_prompt][0]
        assert torch.equal(logits, apart[asked_prompt][1])
        assert logits.isfinite().all()
