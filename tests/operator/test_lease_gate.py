"""The lease is judged by locally observed time alone."""

from __future__ import annotations

import asyncio

import pytest

from readapt_operator.kube.errors import NotLeader
from readapt_operator.lease import LEASE_NAME, LeaseGate
from readapt_testing.fake_kube import FakeKube


class Machine:
    """Two operators with clocks of their own over one API server."""

    def __init__(self) -> None:
        self.now = {"a": 1000.0, "b": -5000.0}
        self.kube = FakeKube(lambda: "2030-01-01T00:00:00Z")

    def gate(self, name: str) -> LeaseGate:
        return LeaseGate(self.kube, namespace="sys", identity=name, duration_s=15.0, clock=lambda: self.now[name])

    def pass_time(self, seconds: float) -> None:
        for name in self.now:
            self.now[name] += seconds

    @property
    def holder(self) -> str:
        return str(self.kube.of("Lease")[LEASE_NAME]["spec"]["holderIdentity"])


def step(gate: LeaseGate) -> bool:
    return asyncio.run(gate.step())


def test_without_a_lease_nothing_may_be_written() -> None:
    gate = Machine().gate("a")
    with pytest.raises(NotLeader):
        gate.remaining_s()


def test_a_write_gets_at_most_what_is_left() -> None:
    machine = Machine()
    gate = machine.gate("a")
    assert step(gate)
    machine.pass_time(9.0)
    assert gate.remaining_s() == pytest.approx(5.0)
    machine.pass_time(5.5)
    assert not gate.held
    with pytest.raises(NotLeader):
        gate.remaining_s()


def test_the_second_waits_for_a_whole_unchanged_duration() -> None:
    machine = Machine()
    a, b = machine.gate("a"), machine.gate("b")
    assert step(a)
    assert not step(b)
    machine.pass_time(10.0)
    assert step(a)  # renewed: b's count starts again
    assert not step(b)
    machine.pass_time(15.0)
    assert not step(b)
    machine.pass_time(0.5)
    assert step(b)
    assert machine.holder == "b"


def test_a_holder_that_slept_finds_the_lease_taken_before_it_writes() -> None:
    machine = Machine()
    a, b = machine.gate("a"), machine.gate("b")
    step(a)
    step(b)
    machine.pass_time(60.0)
    assert step(b)
    with pytest.raises(NotLeader):
        a.remaining_s()
    assert not step(a)


def test_a_released_lease_is_taken_at_once() -> None:
    machine = Machine()
    a, b = machine.gate("a"), machine.gate("b")
    step(a)
    asyncio.run(a.release())
    assert not a.held
    assert step(b)


def test_a_restarted_holder_continues_and_a_deleted_lease_is_made_again() -> None:
    machine = Machine()
    assert step(machine.gate("a"))
    again = machine.gate("a")
    assert step(again)
    machine.kube.remove("Lease", LEASE_NAME, "sys")
    assert step(again)
    assert machine.holder == "a"


def test_of_two_that_take_an_expired_lease_one_wins() -> None:
    machine = Machine()
    machine.now["c"] = 0.0
    a, b, c = machine.gate("a"), machine.gate("b"), machine.gate("c")
    step(a)
    step(b)
    step(c)
    machine.pass_time(16.0)
    assert [step(b), step(c)] == [True, False]
