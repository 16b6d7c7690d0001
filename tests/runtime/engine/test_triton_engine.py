"""The whole engine with the Triton backend, in the interpreter: the torch and compiled backends' tokens."""

from __future__ import annotations

import pytest

from readapt_runtime.engine.limits import EngineLimits
from readapt_runtime.engine.pool import PageOrder
from readapt_runtime.model.backends import triton_backends
from readapt_testing.tiny_engine import Tiny, ask, run_to_idle

NAMES = (None, "r4", "r64", "r3")


@pytest.mark.parametrize("max_batch_tokens", [64, 20], ids=["whole prompts", "chunked prompts"])
def test_a_mixed_batch_is_answered_as_by_peft(tiny: Tiny, max_batch_tokens: int) -> None:
    limits = EngineLimits(max_batch_tokens, max_running=8)
    engine = tiny.engine(64, limits, PageOrder.PAGE_MAJOR, max_model_len=64, backends=triton_backends)
    asked = []
    for index, name in enumerate(NAMES):
        prompt = [(7 * index + 3 * i) % 250 for i in range(5 + 12 * index)]
        asked.append((name, prompt, ask(engine, prompt, tiny.variant(name) if name else None, max_tokens=4)[1]))
    run_to_idle(engine)
    engine.memory.check()
    for name, prompt, answer in asked:
        tiny.oracle.assert_greedy(tiny.folder(name), prompt, answer.tokens, 4)
