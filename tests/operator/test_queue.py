"""The work queue in virtual time."""

from __future__ import annotations

import random

import pytest

from readapt_operator.queue import FIRST_BACKOFF_S, MAX_BACKOFF_S, Key, WorkQueue

A, B = Key("ns", "a"), Key("ns", "b")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(clock: Clock) -> WorkQueue:
    return WorkQueue(clock, random.Random(7))


def test_a_key_added_many_times_is_taken_once(queue: WorkQueue) -> None:
    for _ in range(5):
        queue.add(A)
    assert queue.take() == A
    assert queue.take() is None


def test_a_key_is_never_worked_on_twice_at_once_and_comes_again_afterwards(queue: WorkQueue) -> None:
    queue.add(A)
    assert queue.take() == A
    queue.add(A)
    assert queue.take() is None
    queue.finish(A, None)
    assert queue.take() == A


def test_the_earliest_wish_stands(queue: WorkQueue, clock: Clock) -> None:
    queue.add(A, 10.0)
    queue.add(A, 1.0)
    queue.add(A, 30.0)
    clock.now += 1.0
    assert queue.take() == A
    queue.finish(A, None)
    clock.now += 100.0
    assert queue.take() is None


def test_another_key_is_not_held_up_by_one_in_work(queue: WorkQueue, clock: Clock) -> None:
    queue.add(A)
    assert queue.take() == A
    queue.add(A)
    clock.now += 1
    queue.add(B)
    assert queue.take() == B


def test_next_due_ignores_keys_in_work(queue: WorkQueue) -> None:
    queue.add(A)
    queue.take()
    queue.add(A)
    assert queue.next_due_s() is None
    queue.add(B, 4.0)
    assert queue.next_due_s() == pytest.approx(4.0)


def test_failures_back_off_exponentially_within_bounds(queue: WorkQueue, clock: Clock) -> None:
    queue.add(A)
    limit = FIRST_BACKOFF_S
    for _ in range(12):
        assert queue.take() == A
        delay = queue.fail(A)
        assert limit / 2 <= delay <= limit
        limit = min(MAX_BACKOFF_S, limit * 2)
        clock.now += delay


def test_an_event_does_not_undo_a_back_off_and_success_ends_it(queue: WorkQueue, clock: Clock) -> None:
    queue.add(A)
    queue.take()
    delay = queue.fail(A)
    queue.add(A)
    assert queue.take() is None
    clock.now += delay
    assert queue.take() == A
    queue.finish(A, None)
    queue.add(A)
    assert queue.take() == A


def test_due_time_of_a_finished_pass_is_kept(queue: WorkQueue, clock: Clock) -> None:
    queue.add(A)
    queue.take()
    queue.finish(A, 5.0)
    assert queue.take() is None
    clock.now += 5.0
    assert queue.take() == A
