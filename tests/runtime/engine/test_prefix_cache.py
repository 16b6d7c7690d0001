"""The prefix cache saves work and changes no answer; nothing is shared that must not be."""

from __future__ import annotations

import pytest

from readapt_runtime.engine.core import Request, SamplingParams, Variant
from readapt_runtime.engine.engine import Engine
from readapt_runtime.engine.limits import EngineLimits
from readapt_testing.tiny_engine import EOS, Answer, Tiny, ask, run_to_idle

PROMPT = [(7 * i) % 251 for i in range(50)]


def _ask(engine: Engine, prompt: list[int], variant: Variant | None = None, tenant: str = "") -> Answer:
    answer = Answer()
    params = SamplingParams(max_tokens=8, stop_ids=frozenset({EOS}))
    engine.add(Request(tuple(prompt), params, answer.events.append, variant, tenant=tenant))
    run_to_idle(engine)
    return answer


@pytest.mark.parametrize("name", [None, "r8"], ids=str)
@pytest.mark.parametrize("chunk", [512, 24], ids=["whole", "chunked"])
def test_a_cached_beginning_is_not_computed_again_and_answers_stay(tiny: Tiny, name: str | None, chunk: int) -> None:
    engine = tiny.engine(limits=EngineLimits(max_batch_tokens=chunk))
    variant = tiny.variant(name) if name else None
    first = _ask(engine, PROMPT, variant)
    assert engine.memory.prefixes.hits == 0
    again = _ask(engine, PROMPT, variant)
    assert engine.memory.prefixes.hits == 48, "all full blocks of 50 tokens"
    longer = _ask(engine, PROMPT + first.tokens + [5, 6], variant)
    assert engine.memory.prefixes.hits == 48 + 48, "the answer did not fill a block"
    assert again.tokens == first.tokens
    for prompt, answer in ((PROMPT, first), (PROMPT + first.tokens + [5, 6], longer)):
        tiny.oracle.assert_greedy(tiny.folder(name), prompt, answer.tokens, 8)


def test_a_prompt_of_whole_blocks_still_computes_its_last_token(tiny: Tiny) -> None:
    engine = tiny.engine()
    first, again = (_ask(engine, PROMPT[:48]) for _ in range(2))
    assert engine.memory.prefixes.hits == 32
    assert first.tokens == again.tokens


def test_answers_are_prefixes_too(tiny: Tiny) -> None:
    engine = tiny.engine()
    _, answer = ask(engine, PROMPT, max_tokens=40)
    run_to_idle(engine)
    _ask(engine, PROMPT + answer.tokens + [9])
    cached = len(PROMPT) + len(answer.tokens) - 1  # the last token of an answer is never computed
    assert engine.memory.prefixes.hits == cached - cached % 16


def test_nothing_is_shared_across_adapters_generations_or_tenants(tiny: Tiny) -> None:
    engine = tiny.engine()
    old, new = tiny.variant("r8"), tiny.variant("r8")
    for variant, tenant in ((None, ""), (old, ""), (new, ""), (tiny.variant("r4"), ""), (None, "a"), (None, "b")):
        _ask(engine, PROMPT, variant, tenant)
    assert engine.memory.prefixes.hits == 0


def test_blocks_go_with_the_generation_they_belong_to(tiny: Tiny) -> None:
    engine = tiny.engine()
    variant = tiny.variant("r8")
    _ask(engine, PROMPT, variant)
    assert engine.memory.prefixes.cached(variant) == 3
    engine.forget(variant)
    assert engine.memory.prefixes.cached(variant) == 0
    assert engine.pool.num_free == engine.pool.num_pages


def test_two_sequences_that_compute_the_same_prefix_at_once_both_answer(tiny: Tiny) -> None:
    engine = tiny.engine()
    answers = [ask(engine, PROMPT, max_tokens=8)[1] for _ in range(2)]
    run_to_idle(engine)
    assert answers[0].tokens == answers[1].tokens
    tiny.oracle.assert_greedy(None, PROMPT, answers[0].tokens, 8)
    engine.memory.clear()
    engine.memory.check()
    assert engine.pool.num_free == engine.pool.num_pages
