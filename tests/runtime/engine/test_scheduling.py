"""Who runs and who waits: chunks, preemption, priorities, fairness, patience and requests that come too late."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from readapt_runtime.engine.core import (
    DeadlineUnreachable,
    Failure,
    Request,
    SamplingParams,
    Sequence,
    Variant,
)
from readapt_runtime.engine.engine import Engine
from readapt_runtime.engine.limits import EngineLimits
from readapt_runtime.engine.waiting import WaitingQueue
from readapt_testing.tiny_engine import EOS, Answer, Later, Tiny, ask, run_to_idle


def _add(engine: Engine, prompt: list[int], max_tokens: int, variant: Variant | None = None, **more: object) -> Answer:
    answer = Answer()
    params = SamplingParams(max_tokens=max_tokens, stop_ids=frozenset({EOS}))
    engine.add(Request(tuple(prompt), params, answer.events.append, variant, **more))  # type: ignore[arg-type]
    return answer


def test_a_long_prompt_never_takes_more_than_its_chunk_while_others_decode(tiny: Tiny) -> None:
    engine = tiny.engine(limits=EngineLimits(max_batch_tokens=256, chunk_tokens=16))
    short = _add(engine, [60, 61], 30)
    engine.step()
    long = _add(engine, list(range(200)), 4)
    seen = []
    while not long.events:
        before = len(short.tokens)
        engine.step()
        seen.append(len(short.tokens) - before)
    assert seen == [1] * math.ceil(200 / 16), "the other one got a token in every step"
    run_to_idle(engine)
    tiny.oracle.assert_greedy(None, list(range(200)), long.tokens, 4)
    tiny.oracle.assert_greedy(None, [60, 61], short.tokens, 30)


def test_a_long_prompt_alone_takes_the_whole_budget(tiny: Tiny) -> None:
    engine = tiny.engine(limits=EngineLimits(max_batch_tokens=256, chunk_tokens=16))
    answer = _add(engine, list(range(200)), 4)
    engine.step()
    assert len(answer.tokens) == 1


@pytest.mark.parametrize("names", [(None,) * 6, ("r4", "r3", "r4", None, "r3", "r4")], ids=["base", "adapters"])
def test_answers_that_outgrow_the_pool_are_preempted_and_come_out_the_same(
    tiny: Tiny, names: tuple[str | None, ...]
) -> None:
    variants = {name: tiny.variant(name) for name in set(names) if name}
    engine = tiny.engine(num_pages=10 if any(names) else 12)
    prompts = [[3 * i + 1, 2, 5, i] for i in range(len(names))]
    answers = [
        _add(engine, prompt, 60, variants[name] if name else None) for prompt, name in zip(prompts, names, strict=True)
    ]
    run_to_idle(engine)
    assert engine.scheduler.preemptions > 0
    for prompt, name, answer in zip(prompts, names, answers, strict=True):
        tiny.oracle.assert_greedy(tiny.folder(name), prompt, answer.tokens, 60)
    engine.memory.clear()
    assert engine.pool.num_free == engine.pool.num_pages


def test_random_answers_survive_preemption(tiny: Tiny) -> None:
    def run(pages: int) -> tuple[list[list[int]], int]:
        engine = tiny.engine(num_pages=pages)
        answers = [ask(engine, [i, 4], max_tokens=60, temperature=1.0, seed=i)[1] for i in range(5)]
        run_to_idle(engine)
        return [answer.tokens for answer in answers], engine.scheduler.preemptions

    (roomy, none), (tight, some) = run(200), run(10)
    assert (none, some > 0) == (0, True)
    assert tight == roomy


def test_the_first_come_is_never_preempted_and_all_end(tiny: Tiny) -> None:
    engine = tiny.engine(num_pages=6)
    answers = [_add(engine, [i, 9], 80) for i in range(4)]
    first_done = None
    while engine.has_work:
        engine.step()
        if first_done is None and answers[0].done:
            first_done = [answer.done for answer in answers]
    assert first_done == [True, False, False, False]
    assert all(answer.done for answer in answers)


def test_larger_priorities_go_first_and_are_preempted_last(tiny: Tiny) -> None:
    engine = tiny.engine(num_pages=6, limits=EngineLimits(max_running=2))
    low = [_add(engine, [i, 9], 60) for i in range(3)]
    high = _add(engine, [8, 8], 60, priority=1)
    engine.step()
    assert high.events
    assert [bool(answer.events) for answer in low] == [True, False, False]
    while not high.done:
        engine.step()
    assert not any(answer.done for answer in low)
    run_to_idle(engine)
    tiny.oracle.assert_greedy(None, [8, 8], high.tokens, 60)


def test_an_account_that_floods_the_queue_does_not_hold_others_back(tiny: Tiny) -> None:
    engine = tiny.engine(limits=EngineLimits(max_running=1))
    flood = [_add(engine, [i, i], 4, account="flood") for i in range(10)]
    quiet = _add(engine, [5, 5], 4, account="quiet")
    while not quiet.done:
        engine.step()
    assert sum(answer.done for answer in flood) <= 2
    run_to_idle(engine)
    assert all(answer.done for answer in flood)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 50), st.integers(0, 30)), min_size=30, max_size=60))
@settings(max_examples=50, deadline=None)
def test_backlogged_accounts_are_served_within_the_bound_of_vtc(jobs: list[tuple[str, int, int]]) -> None:
    """Theorem 4.4 of the VTC paper: two backlogged accounts differ by at most twice the largest request."""
    queue, served = WaitingQueue(), dict.fromkeys("abc", 0.0)
    left = {account: sum(a == account for a, _, _ in jobs) for account in "abc"}
    for account, prompt, answer in jobs:
        request = Request((0,) * prompt, SamplingParams(answer), lambda _: None, account=account)
        queue.add(Sequence(request, list(request.prompt)))
    while all(left.values()):
        (seq,) = queue.first(1)
        queue.remove(seq)
        queue.charge_prompt(seq)
        for _ in range(seq.request.sampling.max_tokens):
            queue.charge_answer(seq)
        account = seq.request.account
        served[account] += len(seq.request.prompt) + 2 * seq.request.sampling.max_tokens
        left[account] -= 1
        assert max(served.values()) - min(served.values()) <= 2 * (50 + 2 * 30)


def test_an_account_that_was_away_saves_nothing_up() -> None:
    queue = WaitingQueue()

    def add(account: str) -> Sequence:
        seq = Sequence(Request((0,) * 10, SamplingParams(1), lambda _: None, account=account), [0] * 10)
        queue.add(seq)
        return seq

    for _ in range(20):
        add("busy")
    for seq in queue.first(15):
        queue.remove(seq)
        queue.charge_prompt(seq)
    for _ in range(5):
        add("back")
    order = [seq.request.account for seq in queue.first(10)]
    assert order[:4] in (["busy", "back", "busy", "back"], ["back", "busy", "back", "busy"])


def test_many_accounts_that_left_are_forgotten() -> None:
    queue = WaitingQueue()
    for number in range(10000):
        seq = Sequence(Request((0,), SamplingParams(1), lambda _: None, account=str(number)), [0])
        queue.add(seq)
        queue.charge_prompt(seq)  # in the order of Scheduler.admit, and then the answer
        queue.remove(seq)
        for _ in range(50):
            queue.charge_answer(seq)
    assert len(queue._served) < 2100


def test_a_blocked_sequence_is_passed_by_others_only_for_a_while(tiny: Tiny) -> None:
    now = [0.0]
    engine = tiny.engine(num_pages=8, limits=EngineLimits(patience_s=5), clock=lambda: now[0])
    runs = _add(engine, [1] * 60, 30)
    engine.step()
    large = _add(engine, [2] * 100, 4)  # 7 pages, while 4 or more of 8 are taken
    early = _add(engine, [3], 4)
    engine.step()
    assert early.events
    assert not large.events
    run_to = len(runs.tokens) + 2
    now[0] = 6.0
    late = _add(engine, [4], 4)
    while len(runs.tokens) < run_to:
        engine.step()
    assert not late.events, "nobody passes any longer"
    run_to_idle(engine)
    assert large.done
    assert late.done
    assert len(large.tokens) == 4


def _slow_engine(tiny: Tiny) -> tuple[Engine, list[float]]:
    """One sequence at a time, 10 ms a token, and its clock."""
    now = [0.0]
    engine = tiny.engine(limits=EngineLimits(max_running=1), clock=lambda: now[0])
    forward = engine._model.forward

    def slow(batch):  # type: ignore[no-untyped-def]
        now[0] += 0.01 * len(batch.token_ids)
        return forward(batch)

    engine._model.forward = slow  # type: ignore[method-assign]
    return engine, now


def test_what_can_no_longer_make_its_first_token_is_refused_and_the_rest_is_kept(tiny: Tiny) -> None:
    engine, now = _slow_engine(tiny)
    _add(engine, [1] * 20, 30)  # 0.2 s and 0.3 s: the pace is known after it has begun
    engine.step()
    hopeless = _add(engine, [2] * 100, 2, first_token_by=now[0] + 0.9)
    doomed = _add(engine, [3] * 40, 2, first_token_by=now[0] + 0.5)
    possible = _add(engine, [4] * 40, 2, first_token_by=now[0] + 1.2)
    engine.step()
    assert isinstance(hopeless.last, Failure)
    assert isinstance(hopeless.last.error, DeadlineUnreachable), "100 tokens take a second, whoever is first"
    run_to_idle(engine)
    assert isinstance(doomed.last, Failure), "the one before it took too long"
    assert possible.done
    assert len(possible.tokens) == 2


def test_prompts_before_count_for_the_first_token_and_what_they_share_counts_once(tiny: Tiny) -> None:
    engine, now = _slow_engine(tiny)
    _add(engine, [1] * 20, 2)
    engine.step()
    first = _add(engine, [2] * 40, 1)
    shares = _add(engine, [2] * 32 + [3] * 8, 1, first_token_by=now[0] + 0.6)  # 0.4 s, and 0.08 for what it adds
    behind = _add(engine, [4] * 40, 1, first_token_by=now[0] + 0.7)  # alone 0.4 s, but 0.48 are before it
    steps = engine.forward_passes
    engine.step()
    assert isinstance(behind.last, Failure)
    assert isinstance(behind.last.error, DeadlineUnreachable)
    assert engine.forward_passes == steps + 1, "it was told before anything was computed for it"
    run_to_idle(engine)
    assert len(first.tokens) == len(shares.tokens) == 1


def test_who_waits_for_an_adapter_holds_nobody_back(tiny: Tiny) -> None:
    now = [0.0]
    engine = tiny.engine(limits=EngineLimits(max_running=1), clock=lambda: now[0], executor=Later())
    engine._pace.note(1, 0.01)
    _add(engine, [2] * 100, 1, tiny.variant("r4"))
    passes = _add(engine, [3] * 40, 1, first_token_by=0.5)
    engine.step()
    assert len(passes.tokens) == 1


@pytest.mark.parametrize(
    ("limit", "deadline"), [(math.inf, math.inf), (9.0, 9.0), (50.0, 60.0)], ids=["no limit", "deadline first", "far"]
)
def test_limits_that_cannot_bind_cost_no_look_at_the_prefixes(tiny: Tiny, limit: float, deadline: float) -> None:
    engine, _ = _slow_engine(tiny)
    engine.scheduler._limits = EngineLimits(max_running=1, look_ahead=1)
    for number in range(20):
        _add(engine, [number] * 40, 1, first_token_by=limit, deadline=deadline)
    engine.step()
    looked: list[object] = []
    match = engine.memory.prefixes.match
    engine.memory.prefixes.match = lambda *of: looked.append(of) or match(*of)  # type: ignore[method-assign]
    engine._refuse_late()
    assert not looked
    assert len(engine.scheduler.waiting) == 19
