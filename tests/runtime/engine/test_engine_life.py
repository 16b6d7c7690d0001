"""Admission, eviction, cancellation, deadlines and broken adapters: everybody is answered, every page comes back."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from readapt_runtime.engine.core import (
    DeadlineExceeded,
    EngineDead,
    Failure,
    NonFiniteLogits,
    Request,
    RequestTooLarge,
    SamplingParams,
    Scores,
    Variant,
)
from readapt_runtime.engine.engine import Engine
from readapt_runtime.engine.limits import EngineLimits
from readapt_runtime.engine.thread import EngineThread
from readapt_runtime.model.adapter_image import HostPages
from readapt_testing.tiny_engine import Answer, Tiny, ask, run_to_idle


def _assert_empty(engine: Engine) -> None:
    engine.memory.clear()
    engine.memory.check()
    assert engine.pool.num_free == engine.pool.num_pages


def test_a_request_bigger_than_all_pages_is_refused_and_the_next_one_runs(tiny: Tiny) -> None:
    engine = tiny.engine(num_pages=4)
    _, large = ask(engine, [1] * 40, max_tokens=40)
    assert isinstance(large.last, Failure)
    assert isinstance(large.last.error, RequestTooLarge)
    _, small = ask(engine, [1] * 40, max_tokens=8)
    run_to_idle(engine)
    assert len(small.tokens) == 8
    _assert_empty(engine)


def test_an_adapter_that_leaves_no_room_for_the_prompt_is_refused(tiny: Tiny) -> None:
    variant = tiny.variant("r64")
    engine = tiny.engine(num_pages=variant.image.num_pages)
    _, answer = ask(engine, [1], variant)
    assert isinstance(answer.last, Failure)
    assert isinstance(answer.last.error, RequestTooLarge)


def test_requests_wait_for_pages_and_all_are_answered_in_order(tiny: Tiny) -> None:
    engine = tiny.engine(num_pages=6)
    answers = [ask(engine, [i, i + 1], max_tokens=30)[1] for i in range(7)]  # two pages each: three at a time
    begun: list[int] = []
    while engine.has_work:
        engine.step()
        engine.memory.check()
        assert len(engine.scheduler.running) <= 3
        begun += [i for i, a in enumerate(answers) if a.events and i not in begun]
    assert begun == list(range(7))
    assert all(a.done for a in answers)
    _assert_empty(engine)


def test_unused_adapters_make_room_and_answers_do_not_change(tiny: Tiny) -> None:
    variants = [tiny.variant(n) for n in ("r3", "r4", "r8")]
    room = max(v.image.num_pages for v in variants) + 2
    engine = tiny.engine(num_pages=room)
    for _ in range(4):
        for variant in variants:
            _, answer = ask(engine, [9, 8, 7], variant, max_tokens=6)
            run_to_idle(engine)
            tiny.oracle.assert_greedy(tiny.adapters[variant.name], [9, 8, 7], answer.tokens, 6)
    _assert_empty(engine)


def test_replacing_an_adapter_under_load_never_changes_a_running_answer(tiny: Tiny) -> None:
    """The name stays, the weights alternate; each answer equals the solo run of the variant it was admitted with."""
    folders = ("r3", "r4", "r8")
    solo: dict[str, list[int]] = {}
    for name in folders:
        alone = tiny.engine()
        _, answer = ask(alone, [1, 2, 3], tiny.variant(name), max_tokens=10)
        run_to_idle(alone)
        solo[name] = answer.tokens
    engine = tiny.engine(num_pages=120)
    rng = random.Random(0)
    current = tiny.variant("r3")
    asked: list[tuple[str, Answer]] = []
    generations = 1
    for step in range(150):
        if step % 2 == 0:
            asked.append((current.name, ask(engine, [1, 2, 3], current, max_tokens=10)[1]))
        if rng.random() < 0.8:
            engine.forget(current)
            current = tiny.variant(rng.choice(folders))
            generations += 1
        engine.step()
        engine.memory.check()
    run_to_idle(engine)
    assert generations > 100
    assert all(answer.tokens == solo[name] for name, answer in asked)
    engine.forget(current)
    assert engine.pool.num_free == engine.pool.num_pages, "pages of forgotten variants go with their last sequence"


def test_a_forgotten_variant_stays_until_its_last_sequence_ends(tiny: Tiny) -> None:
    engine = tiny.engine()
    variant = tiny.variant("r8")
    _, answer = ask(engine, [4, 5], variant, max_tokens=6)
    engine.step()
    engine.forget(variant)
    assert engine.memory.residency.is_resident(variant)
    run_to_idle(engine)
    assert not engine.memory.residency.is_resident(variant)
    tiny.oracle.assert_greedy(tiny.adapters["r8"], [4, 5], answer.tokens, 6)


def test_cancelled_requests_give_their_pages_back_and_neighbours_go_on(tiny: Tiny) -> None:
    engine = tiny.engine()
    _, stays = ask(engine, [1, 2, 3], max_tokens=12)
    gone, answer = ask(engine, [4, 5, 6], tiny.variant("r4"), max_tokens=200)
    engine.step()
    engine.cancel(gone)
    engine.cancel(gone)
    before = len(answer.events)
    run_to_idle(engine)
    assert len(answer.events) == before
    tiny.oracle.assert_greedy(None, [1, 2, 3], stays.tokens, 12)
    _assert_empty(engine)


def test_a_request_past_its_deadline_is_told_so_whether_it_runs_or_waits(tiny: Tiny) -> None:
    now = [0.0]
    engine = tiny.engine(num_pages=2, clock=lambda: now[0])
    answers = [Answer(), Answer()]
    for answer in answers:
        params = SamplingParams(max_tokens=20)
        engine.add(Request((1, 2), params, answer.events.append, deadline=5.0))
    engine.step()
    assert (len(engine.scheduler.running), len(engine.scheduler.waiting)) == (1, 1)
    now[0] = 5.0
    run_to_idle(engine)
    for answer in answers:
        assert isinstance(answer.last, Failure)
        assert isinstance(answer.last.error, DeadlineExceeded)
    _assert_empty(engine)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_weights_that_overflow_fail_their_request_alone(tiny: Tiny, temperature: float) -> None:
    alone = tiny.engine()
    _, expected = ask(alone, [4, 5], max_tokens=8, temperature=1.0, seed=3)
    run_to_idle(alone)
    engine = tiny.engine()
    good = tiny.variant("r8")
    bad = Variant("bad", good.digest, replace(good.image, read=lambda: HostPages(good.image.read().here * 1e30)))
    _, wrong = ask(engine, [1, 2, 3], bad, temperature=temperature)
    _, right = ask(engine, [1, 2, 3], good, max_tokens=8)
    _, drawn = ask(engine, [4, 5], max_tokens=8, temperature=1.0, seed=3)
    run_to_idle(engine)
    assert isinstance(wrong.last, Failure)
    assert isinstance(wrong.last.error, NonFiniteLogits)
    assert len(wrong.events) == 1
    assert drawn.tokens == expected.tokens
    tiny.oracle.assert_greedy(tiny.adapters["r8"], [1, 2, 3], right.tokens, 8)
    _assert_empty(engine)


@pytest.mark.parametrize("name", [None, "r4", "r64"], ids=str)
def test_scores_are_the_oracles_through_prefill_and_decode(tiny: Tiny, name: str | None) -> None:
    engine = tiny.engine()
    prompt, wanted = tuple(range(10, 40)), (3, 99, 256)
    answer = Answer()
    variant = tiny.variant(name) if name else None
    engine.add(Request(prompt, SamplingParams(max_tokens=1), answer.events.append, variant, score_ids=wanted))
    run_to_idle(engine)
    assert engine.forward_passes == 2, "all but the last token in one pass, the last token in another"
    assert isinstance(answer.last, Scores)
    expected = tiny.oracle.log_probs(tiny.folder(name), list(prompt))[list(wanted)]
    torch.testing.assert_close(torch.tensor(answer.last.log_probs).double(), expected, rtol=0, atol=1e-4)


def test_a_dead_engine_answers_everybody_and_says_so(tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    engine = tiny.engine(limits=EngineLimits(max_running=1))

    class Broken(Exception):
        pass

    def explode(batch: object) -> torch.Tensor:
        raise Broken

    died: list[bool] = []
    engine._model.forward = explode  # type: ignore[method-assign]
    thread = EngineThread(engine, lambda: died.append(True))
    answers = [Answer() for _ in range(3)]
    for answer in answers[:2]:
        thread.submit(Request((1, 2), SamplingParams(max_tokens=4), answer.events.append))
    thread.start()
    thread.stop(30)
    thread.submit(Request((1, 2), SamplingParams(max_tokens=4), answers[2].events.append))
    for answer in answers:
        assert isinstance(answer.last, Failure)
        assert isinstance(answer.last.error, EngineDead)
    assert not thread.alive
    assert isinstance(thread.error, Broken)
    assert died == [True]
    assert "engine thread died" in caplog.text


def test_stopping_the_thread_answers_what_is_unfinished(tiny: Tiny) -> None:
    engine = tiny.engine()
    thread = EngineThread(engine)
    answer = Answer()
    thread.submit(Request((1, 2), SamplingParams(max_tokens=400), answer.events.append))
    thread.stop(0)  # in the inbox behind the request, before the loop has begun
    thread.start()
    thread.stop(30)
    assert isinstance(answer.last, Failure)
    assert thread.error is None
    assert engine.pool.num_free == engine.pool.num_pages
