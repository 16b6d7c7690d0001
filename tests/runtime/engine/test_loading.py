"""Adapters come into the pool beside the steps: nobody else waits for them, and a load that fails is told."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Event

import pytest

from readapt_api.errors import Terminal
from readapt_runtime.engine.core import Batch, DeadlineExceeded, Failure, Request, SamplingParams, Token, Variant
from readapt_runtime.engine.engine import Engine
from readapt_runtime.engine.limits import EngineLimits
from readapt_runtime.engine.pool import BLOCK_TOKENS
from readapt_runtime.engine.thread import EngineThread
from readapt_runtime.model.adapter_image import HostPages
from readapt_testing.tiny_engine import Answer, Later, Tiny, ask, run_to_idle


class Gone(Terminal):
    """The file of an adapter is not there any more."""


def _reading(variant: Variant, read: Callable[[], HostPages]) -> Variant:
    return Variant(variant.name, variant.digest, replace(variant.image, read=read))


def _assert_empty(engine: Engine) -> None:
    engine.memory.clear()
    engine.memory.check()
    assert engine.pool.num_free == engine.pool.num_pages


def test_decoding_goes_on_while_an_adapter_is_loaded(tiny: Tiny) -> None:
    later = Later()
    engine = tiny.engine(executor=later)
    _, base = ask(engine, [60, 61], max_tokens=20)
    variant = tiny.variant("r8")
    waits = [ask(engine, [1, 2, 3], variant, max_tokens=6)[1] for _ in range(2)]
    for _ in range(5):
        assert engine.step()
    assert len(base.tokens) == 5
    assert not any(answer.events for answer in waits)
    assert len(later.waiting) == 1, "one load for both"
    later.run_one()
    assert engine.step()
    assert all(len(answer.tokens) == 1 for answer in waits)
    run_to_idle(engine)
    for answer in waits:
        tiny.oracle.assert_greedy(tiny.adapters["r8"], [1, 2, 3], answer.tokens, 6)
    _assert_empty(engine)


def test_adapters_of_waiting_requests_are_loaded_before_it_is_their_turn(tiny: Tiny) -> None:
    later = Later()
    engine = tiny.engine(executor=later, limits=EngineLimits(max_running=1, max_loading=2))
    ask(engine, [60, 61], max_tokens=20)
    for name in ("r3", "r4", "r8"):
        ask(engine, [1], tiny.variant(name), max_tokens=2)
    engine.step()
    assert len(later.waiting) == 2, "as many as may be loaded at once"
    later.run_one()
    engine.step()
    assert engine.memory.residency.resident == 3
    while later.waiting:
        later.run_one()
    run_to_idle(engine)
    _assert_empty(engine)


def test_who_waits_for_the_loader_holds_nobody_back_however_long_it_takes(tiny: Tiny) -> None:
    now = [0.0]
    limits = EngineLimits(max_loading=1, patience_s=1.0)
    engine = tiny.engine(executor=(later := Later()), limits=limits, clock=lambda: now[0])
    for name in ("r3", "r4", "r8"):
        ask(engine, [1], tiny.variant(name), max_tokens=2)
    for _ in range(3):
        engine.step()
        now[0] += 10.0
    assert len(later.waiting) == 1
    _, base = ask(engine, [60, 61], max_tokens=4)
    assert engine.step()
    assert base.events
    while engine.has_work:
        if later.waiting:
            later.run_one()
        engine.step()
    _assert_empty(engine)


def test_a_load_that_fails_ends_its_requests_alone_and_a_later_one_may_succeed(tiny: Tiny) -> None:
    there = [False]
    good = tiny.variant("r8")

    def read() -> HostPages:
        if not there[0]:
            raise Gone("r8 was not found")
        return good.image.read()

    engine = tiny.engine()
    variant = _reading(good, read)
    _, base = ask(engine, [60, 61], max_tokens=6)
    _, lost = ask(engine, [1, 2, 3], variant)
    run_to_idle(engine)
    assert isinstance(lost.last, Failure)
    assert isinstance(lost.last.error, Gone)
    tiny.oracle.assert_greedy(None, [60, 61], base.tokens, 6)
    there[0] = True
    _, found = ask(engine, [1, 2, 3], variant, max_tokens=6)
    run_to_idle(engine)
    tiny.oracle.assert_greedy(tiny.adapters["r8"], [1, 2, 3], found.tokens, 6)
    _assert_empty(engine)


def test_a_request_cancelled_while_its_adapter_is_loaded_leaves_nothing_behind(tiny: Tiny) -> None:
    later = Later()
    engine = tiny.engine(executor=later)
    variant = tiny.variant("r8")
    request, answer = ask(engine, [1, 2, 3], variant)
    assert not engine.step()
    engine.cancel(request)
    engine.forget(variant)
    later.run_one()
    assert not engine.step()
    assert not answer.events
    assert engine.pool.num_free == engine.pool.num_pages


def test_a_forgotten_variant_still_answers_those_who_waited_for_it(tiny: Tiny) -> None:
    later = Later()
    engine = tiny.engine(executor=later)
    variant = tiny.variant("r8")
    _, answer = ask(engine, [1, 2, 3], variant, max_tokens=6)
    engine.step()
    engine.forget(variant)
    later.run_one()
    run_to_idle(engine)
    tiny.oracle.assert_greedy(tiny.adapters["r8"], [1, 2, 3], answer.tokens, 6)
    assert engine.pool.num_free == engine.pool.num_pages


def test_the_thread_answers_beside_a_slow_load_and_wakes_when_it_ends(tiny: Tiny) -> None:
    begun, go_on = Event(), Event()
    good = tiny.variant("r8")

    def read() -> HostPages:
        begun.set()
        assert go_on.wait(30)
        return good.image.read()

    with ThreadPoolExecutor(1) as executor:
        engine = tiny.engine(executor=executor)
        thread = EngineThread(engine)
        thread.start()
        slow, base = Answer(), Answer()
        slow_done, base_done = Event(), Event()
        _submit(thread, slow, slow_done, _reading(good, read))
        assert begun.wait(30)
        _submit(thread, base, base_done, None)
        assert base_done.wait(30), "the base does not wait"
        assert not slow.events
        go_on.set()
        assert slow_done.wait(30)
        thread.stop(30)
    tiny.oracle.assert_greedy(tiny.adapters["r8"], [1, 2, 3], slow.tokens, 6)
    assert thread.error is None


def test_deadlines_pass_while_an_adapter_is_loaded(tiny: Tiny) -> None:
    now = [0.0]
    engine = tiny.engine(executor=Later(), clock=lambda: now[0])
    answer = Answer()
    engine.add(Request((1, 2), SamplingParams(4), answer.events.append, tiny.variant("r8"), deadline=1.0))
    engine.step()
    now[0] = 2.0
    engine.step()
    assert isinstance(answer.last, Failure)
    assert isinstance(answer.last.error, DeadlineExceeded)


def test_more_adapters_than_fit_take_turns_and_all_answer(tiny: Tiny) -> None:
    names = ("r3", "r4", "r8")
    variants = [tiny.variant(name) for name in names for _ in range(4)]
    engine = tiny.engine(num_pages=max(v.image.num_pages for v in variants) + 3)
    answers = [ask(engine, [9, 8, i], variant, max_tokens=6)[1] for i, variant in enumerate(variants)]
    run_to_idle(engine)
    for i, (variant, answer) in enumerate(zip(variants, answers, strict=True)):
        tiny.oracle.assert_greedy(tiny.adapters[variant.name], [9, 8, i], answer.tokens, 6)
    assert engine.memory.residency.evicted > 0
    _assert_empty(engine)


def test_a_preloaded_adapter_is_there_before_anyone_asks_and_goes_last(tiny: Tiny) -> None:
    variant = tiny.variant("r8")
    engine = tiny.engine(num_pages=variant.image.num_pages + 6)
    engine.preload(variant)
    assert engine.memory.residency.is_resident(variant)
    for _ in range(3):
        for name in ("r3", "r4"):
            ask(engine, [9, 8], tiny.variant(name), max_tokens=60)
            run_to_idle(engine)
    assert engine.memory.residency.evicted > 0
    assert engine.memory.residency.is_resident(variant)
    _, large = ask(engine, [1] * (16 * 8), max_tokens=1)
    run_to_idle(engine)
    assert large.done, "when all pages are wanted it goes as well"
    assert isinstance(large.last, Token)
    engine.step()
    engine.memory.clear()
    engine.step()
    assert engine.memory.residency.is_resident(variant), "and comes back when there is room"
    engine.forget(variant)
    engine.step()
    _assert_empty(engine)


@pytest.mark.parametrize(("watermark", "loads_early"), [(0.0, True), (0.9, False)])
def test_an_adapter_is_loaded_before_its_turn_only_above_the_watermark(
    tiny: Tiny, watermark: float, loads_early: bool
) -> None:
    later = Later()
    engine = tiny.engine(num_pages=60, limits=EngineLimits(max_running=1, watermark=watermark), executor=later)
    ask(engine, [60, 61], max_tokens=4)
    engine.step()
    _, second = ask(engine, [5, 6], max_tokens=4)
    _, third = ask(engine, [1, 2, 3], tiny.variant("r8"), max_tokens=4)
    engine.step()
    assert bool(later.waiting) is loads_early
    while not second.done:
        engine.step()
    engine.step()
    assert later.waiting, "its turn has come"
    later.run_one()
    run_to_idle(engine)
    assert third.done
    _assert_empty(engine)


@pytest.mark.parametrize(("watermark", "is_loaded"), [(0.0, True), (0.9, False)])
def test_what_is_preloaded_leaves_the_watermark_free(tiny: Tiny, watermark: float, is_loaded: bool) -> None:
    engine = tiny.engine(num_pages=60, limits=EngineLimits(watermark=watermark))
    variant = tiny.variant("r8")
    engine.preload(variant)
    assert engine.memory.residency.is_resident(variant) is is_loaded
    _, answer = ask(engine, [1, 2, 3], variant, max_tokens=2)
    run_to_idle(engine)
    assert answer.done
    assert engine.memory.residency.is_resident(variant)


def test_a_preloaded_adapter_that_cannot_be_read_is_told_once_and_not_tried_again(
    tiny: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    reads = []

    def read() -> HostPages:
        reads.append(1)
        raise Gone("r8 was not found")

    engine = tiny.engine()
    engine.preload(_reading(tiny.variant("r8"), read))
    for _ in range(5):
        ask(engine, [1], max_tokens=1)
        run_to_idle(engine)
    assert len(reads) == 1
    assert [record.message for record in caplog.records] == ["adapter not loaded"]
    _assert_empty(engine)


def _submit(thread: EngineThread, answer: Answer, done: Event, variant: Variant | None) -> None:
    def emit(event: object) -> None:
        answer.events.append(event)  # type: ignore[arg-type]
        if answer.done:
            done.set()

    thread.submit(Request((1, 2, 3), SamplingParams(6), emit, variant))


def test_what_a_page_is_worth_follows_what_was_measured(tiny: Tiny) -> None:
    now = [100.0]
    engine = tiny.engine(clock=lambda: now[0])
    costs, variant = engine.memory.costs, tiny.variant("r8")
    guess = costs.adapter_s

    def slow() -> HostPages:
        now[0] += 10.0 * variant.image.num_pages
        return variant.image.read()

    ask(engine, [1, 2, 3], _reading(variant, slow), max_tokens=1)
    run_to_idle(engine)
    assert costs.adapter_s == pytest.approx(0.8 * guess + 0.2 * 10.0)

    forward = engine._model.forward

    def paced(batch: Batch) -> object:
        now[0] += 0.5 * len(batch.token_ids)
        return forward(batch)

    engine._model.forward = paced  # type: ignore[method-assign, assignment]
    ask(engine, [9] * 40, max_tokens=1)
    run_to_idle(engine)
    assert costs.kv_s == pytest.approx(0.5 * BLOCK_TOKENS)
    assert EngineLimits().costs.kv_s != costs.kv_s, "of this engine alone"
