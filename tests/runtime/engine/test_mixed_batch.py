"""Greedy answers of a mixed batch equal transformers + PEFT, one forward pass per step."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from readapt_runtime.engine.core import FinishReason, Token, Variant
from readapt_runtime.engine.engine import Engine
from readapt_runtime.engine.limits import EngineLimits
from readapt_runtime.model.ops import Ops, TorchOps
from readapt_testing.tiny_engine import Answer, Tiny, ask, run_to_idle
from readapt_testing.tiny_llama import write_adapter_folder

NAMES = (None, "r4", "r8", "r64")


def _ops(tiny: Tiny, is_plain: bool) -> Ops | None:
    """Plain torch, attention and LoRA with it, as on a CPU without compiled kernels; None for what this one has."""
    return TorchOps(tiny.config.rms_norm_eps) if is_plain else None


def _count_passes(engine: Engine) -> list[int]:
    """Grows by one each time that the first layer is computed, whoever asks for it and for how many rows."""
    passes: list[int] = []
    attention = engine._model._attention  # type: ignore[attr-defined]
    run = attention.run

    def counted(layer: int, *operands: object) -> torch.Tensor:
        if layer == 0:
            passes.append(layer)
        return run(layer, *operands)

    attention.run = counted
    return passes


def _prompt(seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(256) for _ in range(rng.randrange(1, 40))]


@pytest.mark.parametrize("max_batch_tokens", [512, 24], ids=["whole prompts", "chunked prompts"])
@pytest.mark.parametrize("is_plain", [False, True], ids=["as served", "plain torch"])
def test_sixteen_staggered_requests_answer_as_peft_does(tiny: Tiny, is_plain: bool, max_batch_tokens: int) -> None:
    engine = tiny.engine(num_pages=300, limits=EngineLimits(max_batch_tokens, max_running=16), ops=_ops(tiny, is_plain))
    variants: dict[str | None, Variant | None] = {n: tiny.variant(n) if n else None for n in NAMES}
    pending = [(NAMES[i % 4], _prompt(i)) for i in range(16)]
    passes = _count_passes(engine)
    asked: list[tuple[str | None, list[int], Answer]] = []
    steps, mixed = 0, 0
    while pending or engine.has_work:
        for name, prompt in pending[:2]:
            asked.append((name, prompt, ask(engine, prompt, variants[name], max_tokens=12)[1]))
        del pending[:2]
        engine.step()
        engine.memory.check()
        steps += 1
        assert len(passes) == steps
        mixed = max(mixed, len({s.request.variant for s in engine.scheduler.running}))
    assert mixed == len(NAMES)
    for name, prompt, answer in asked:
        tiny.oracle.assert_greedy(tiny.folder(name), prompt, answer.tokens, 12)
    engine.memory.clear()
    assert engine.pool.num_free == engine.pool.num_pages


@pytest.mark.parametrize("is_plain", [False, True], ids=["as served", "plain torch"])
def test_ranks_1_3_8_and_96_share_every_step(tiny: Tiny, is_plain: bool, tmp_path: Path) -> None:
    made = {f"r{rank}": write_adapter_folder(tmp_path / f"r{rank}", tiny.base, rank, rank) for rank in (1, 96)}
    tiny = replace(tiny, adapters=tiny.adapters | made)
    engine = tiny.engine(num_pages=300, ops=_ops(tiny, is_plain))
    names = ("r96", "r1", "r8", "r3")
    answers = [ask(engine, _prompt(20 + i), tiny.variant(name), max_tokens=8)[1] for i, name in enumerate(names)]
    engine.step()
    assert [len(answer.tokens) for answer in answers] == [1] * 4
    run_to_idle(engine)
    for i, (name, answer) in enumerate(zip(names, answers, strict=True)):
        tiny.oracle.assert_greedy(tiny.folder(name), _prompt(20 + i), answer.tokens, 8)


@pytest.mark.parametrize("name", ["r3", "r8"])
def test_pages_that_are_not_neighbours_hold_an_adapter_as_well(tiny: Tiny, name: str) -> None:
    engine = tiny.engine(num_pages=64)
    hold = [engine.pool.allocate(kind, 1) for kind in ["kv"] * 64]  # type: ignore[arg-type]
    for entry in hold[::2]:
        engine.pool.release(entry)
    variant = tiny.variant(name)
    _, answer = ask(engine, [1, 2, 3], variant, max_tokens=8)
    engine.step()
    adapter = engine.scheduler.running[0].adapter
    assert adapter is not None
    assert adapter.flat is None
    assert not adapter.entry.consecutive
    run_to_idle(engine)
    tiny.oracle.assert_greedy(tiny.adapters[name], [1, 2, 3], answer.tokens, 8)


def test_an_answer_ends_with_the_end_of_sequence_or_at_max_tokens(tiny: Tiny) -> None:
    engine = tiny.engine()
    _, answer = ask(engine, [5, 6, 7], max_tokens=9)
    run_to_idle(engine)
    assert isinstance(answer.last, Token)
    expected = FinishReason.STOP if answer.tokens[-1] == 256 else FinishReason.LENGTH
    assert answer.last.finish is expected
    assert len(answer.tokens) == 9 or answer.tokens[-1] == 256


def test_each_request_alone_answers_as_in_the_mix(tiny: Tiny) -> None:
    variants = {n: tiny.variant(n) for n in ("r4", "r8", "r64", "r3")}
    together = tiny.engine()
    mixed = {n: ask(together, _prompt(7), v)[1] for n, v in variants.items()}
    run_to_idle(together)
    for name, variant in variants.items():
        alone = tiny.engine()
        _, answer = ask(alone, _prompt(7), variant)
        run_to_idle(alone)
        assert mixed[name].tokens == answer.tokens
    assert len({tuple(a.tokens) for a in mixed.values()}) == len(variants)
