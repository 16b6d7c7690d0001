"""Flux's rules for conditions."""

from __future__ import annotations

from readapt_api import conditions as c
from readapt_operator.status import Conditions, find, shorten

T0, T1 = "2030-01-01T00:00:00Z", "2030-01-01T00:01:00Z"


def test_transition_time_moves_only_with_the_status() -> None:
    first = Conditions((), 1, T0)
    first.set(c.READY, False, c.FETCHING, "version v1")
    second = Conditions(first.done(), 2, T1)
    second.set(c.READY, False, c.ROLLING_OUT, "pods start")
    kept = find(second.done(), c.READY)
    assert kept is not None
    assert (kept.last_transition_time, kept.reason, kept.observed_generation) == (T0, c.ROLLING_OUT, 2)
    third = Conditions(second.done(), 2, T1)
    third.set(c.READY, True, c.SERVING, "answers")
    moved = find(third.done(), c.READY)
    assert moved is not None
    assert moved.last_transition_time == T1


def test_reconciling_and_stalled_exclude_each_other() -> None:
    out = Conditions((), 1, T0)
    out.reconciling(c.FETCHING, "fetching")
    out.stalled(c.SOURCE_FAILED, "no such file")
    assert [x.type for x in out.done()] == [c.STALLED]
    out.reconciling(c.FETCHING, "fetching")
    assert [x.type for x in out.done()] == [c.RECONCILING]


def test_what_is_not_set_again_is_gone_and_readers_see_trouble_first() -> None:
    before = Conditions((), 1, T0)
    before.stalled(c.SOURCE_FAILED, "no such file")
    out = Conditions(before.done(), 1, T1)
    for kind in (c.ROLLED_OUT, c.SOURCE_READY, c.UP_TO_DATE, c.READY):
        out.set(kind, None, c.FETCHING, "fetching")
    out.reconciling(c.FETCHING, "fetching")
    types = [x.type for x in out.done()]
    assert types == [c.RECONCILING, c.READY, c.UP_TO_DATE, c.SOURCE_READY, c.ROLLED_OUT]


def test_messages_are_cut_to_their_bound() -> None:
    assert shorten("abcdef", 4) == "abc…"
    assert shorten("abcd", 4) == "abcd"
