"""An exception at each call of a step: the engine stops, everybody is told, and nothing is answered after it.

What the kernels leave behind when one of them fails (half-written pages, a lost device) is not known, so no step is
tried again: the decision is that the process ends non-zero and a new one starts. ``test_engine_death`` shows the
process's end; here every call of a prefill and of a decode step fails once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import reduce
from typing import Any

import pytest

from readapt_runtime.engine.core import EngineDead, Event, Failure, Request, SamplingParams, Token
from readapt_runtime.engine.engine import Engine
from readapt_runtime.engine.thread import EngineThread
from readapt_testing.tiny_engine import Tiny

BACKENDS = {"_layers._ops": ("add_norm", "silu_mul", "greedy"), "_attention": ("plan", "run"), "_lora": ("plan", "run")}


class InjectedFault(RuntimeError):
    """As a launch error or a lack of device memory would be."""


class Wire:
    """Counts the calls of the backends, and fails at one of them."""

    def __init__(self, engine: Engine, fail_at: int | None) -> None:
        self.calls: list[str] = []
        self._fail_at = fail_at
        for path, names in BACKENDS.items():
            *owners, backend = path.split(".")
            owner = reduce(getattr, owners, engine._model)
            setattr(owner, backend, _Wired(getattr(owner, backend), names, self._note))

    def _note(self, name: str) -> None:
        self.calls.append(name)
        if len(self.calls) - 1 == self._fail_at:
            raise InjectedFault(name)


class _Wired:
    """A backend whose named methods tell before they run."""

    def __init__(self, target: Any, names: tuple[str, ...], note: Callable[[str], None]) -> None:
        self._target, self._names, self._note = target, names, note

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        if name not in self._names:
            return found

        def told(*args: Any) -> Any:
            self._note(f"{type(self._target).__name__}.{name}")
            return found(*args)

        return told


def _serve(tiny: Tiny, fail_at: int | None) -> tuple[Wire, list[list[Event]], EngineThread, threading.Event]:
    """Two requests, of the base and of an adapter, for two tokens each: a prefill step and a decode step."""
    engine = tiny.engine()
    wire = Wire(engine, fail_at)
    died, answered = threading.Event(), threading.Semaphore(0)
    thread = EngineThread(engine, died.set)
    events: list[list[Event]] = [[], []]

    def emit(index: int) -> Callable[[Event], None]:
        def take(event: Event) -> None:
            events[index].append(event)
            if isinstance(event, Failure) or (isinstance(event, Token) and event.finish):
                answered.release()

        return take

    for index, variant in enumerate((None, tiny.variant("r8"))):
        thread.submit(Request((5, 6, 7), SamplingParams(max_tokens=2), emit(index), variant))
    thread.start()
    for _ in events:
        assert answered.acquire(timeout=60)
    return wire, events, thread, died


def _assert_balanced(engine: Engine, where: str) -> None:
    """No page was lost or has two owners, and all come back from those who were running."""
    engine.memory.check()
    for seq in list(engine.scheduler.running):
        engine.scheduler.retire(seq)
    engine.memory.clear()
    engine.memory.check()
    assert engine.pool.num_free == engine.pool.num_pages, where


def test_a_fault_at_any_call_of_a_step_ends_the_engine_and_tells_everybody(
    tiny: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    wire, whole, thread, _ = _serve(tiny, None)
    thread.stop(30)
    assert thread.error is None
    calls = wire.calls
    assert len({name.split(".")[1] for name in calls}) == 5, "norms, activations, plans, runs and the choice are met"
    for at, name in enumerate(calls):
        _, events, faulty, died = _serve(tiny, at)
        assert died.wait(30), f"call {at}: {name}"
        assert isinstance(faulty.error, InjectedFault)
        assert not faulty.alive
        for told, right in zip(events, whole, strict=True):
            assert isinstance(told[-1], Failure)
            assert isinstance(told[-1].error, EngineDead)
            assert told[:-1] == right[: len(told) - 1], "tokens before the fault are those of the whole answer"
        _assert_balanced(faulty._engine, f"call {at}: {name}")
        late: list[Event] = []
        faulty.submit(Request((5,), SamplingParams(max_tokens=1), late.append))
        assert [type(e.error) for e in late if isinstance(e, Failure)] == [EngineDead]
