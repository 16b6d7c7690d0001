"""An exception at each call of a step: the engine stops, everybody is told, and nothing is answered after it.

What the kernels leave behind when one of them fails (half-written pages, a lost device) is not known, so no step is
tried again: the decision is that the process ends non-zero and a new one starts. ``test_engine_death`` shows the
process's end; here every call of a prefill and of a decode step fails once: products, kernels, copies of adapters,
uploads and Triton's launches, in steps that are launched, recorded and replayed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import reduce
from typing import Any

import pytest
import torch
from triton.runtime.interpreter import InterpretedFunction

from readapt_runtime.daemon_threads import DaemonThreads
from readapt_runtime.engine.core import EngineDead, Event, Failure, Request, SamplingParams, Token
from readapt_runtime.engine.engine import Engine
from readapt_runtime.engine.limits import EngineLimits
from readapt_runtime.engine.pool import PageOrder
from readapt_runtime.engine.thread import EngineThread
from readapt_runtime.model import cpu_ops
from readapt_runtime.model.accelerator import Compute
from readapt_runtime.model.ops import TorchOps
from readapt_runtime.model.static_decoder import StaticDecoder
from readapt_testing.launch_tape import LaunchTape
from readapt_testing.tiny_engine import Tiny
from readapt_testing.tiny_llama import write_adapter_folder, write_base

BACKENDS = {
    "_model._layers._ops": ("add_norm", "silu_mul", "greedy"),
    "_model._attention": ("plan", "run"),
    "_model._lora": ("plan", "run"),
    "_model._stack": ("run",),
    "pool": ("write",),
}


class InjectedFault(RuntimeError):
    """As a launch error or a lack of device memory would be."""


class Wire:
    """Counts calls, and fails at one of them."""

    def __init__(self, fail_at: int | None) -> None:
        self.calls: list[str] = []
        self._fail_at = fail_at

    def note(self, name: str) -> None:
        self.calls.append(name)
        if len(self.calls) - 1 == self._fail_at:
            raise InjectedFault(name)

    def told(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            self.note(name)
            return function(*args)

        return call


class _Wired:
    """A backend whose named methods tell before they run."""

    def __init__(self, target: Any, names: tuple[str, ...], wire: Wire) -> None:
        self._target, self._names, self._wire = target, names, wire

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        return self._wire.told(f"{type(self._target).__name__}.{name}", found) if name in self._names else found


def _wire_calls(engine: Engine, wire: Wire) -> Engine:
    for path, names in BACKENDS.items():
        *owners, backend = path.split(".")
        owner = reduce(getattr, owners, engine)
        target = getattr(owner, backend)
        if backend == "pool":
            target.write = wire.told("PagePool.write", target.write)
        elif target is not None:
            setattr(owner, backend, _Wired(target, names, wire))
    weights = engine._model._layers._weights  # type: ignore[attr-defined]
    for layer in weights.layers:
        for linear, product in layer.linears.items():
            layer.linears[linear] = wire.told("product", product)
    object.__setattr__(weights, "lm_head", wire.told("lm_head", weights.lm_head))
    return engine


class _ToldTape(LaunchTape):
    """Tells uploads, and Triton's launches with what becomes of them."""

    def __init__(self, wire: Wire) -> None:
        super().__init__()
        self._wire = wire
        self._how = "launched"

    def launch(self, kernel: str) -> None:
        self._wire.note(f"{kernel} {self._how}")

    def upload(self, host: torch.Tensor, device: torch.Tensor) -> None:
        self._wire.note("upload")
        super().upload(host, device)

    def record(self, compute: Compute) -> Compute:
        self._how = "recorded"
        replay = super().record(compute)
        self._how = "launched"

        def told() -> torch.Tensor:
            self._how = "replayed"
            result = replay()
            self._how = "launched"
            return result

        return told


def _layer_by_layer(tiny: Tiny, wire: Wire, _: pytest.MonkeyPatch) -> Engine:
    return _wire_calls(tiny.engine(), wire)


def _in_one_call(tiny: Tiny, wire: Wire, patch: pytest.MonkeyPatch) -> Engine:
    patch.setattr(cpu_ops, "prefers_onednn", lambda: False)  # one call takes products of ours
    return _wire_calls(Tiny(tiny.base, tiny.adapters, torch.bfloat16).engine(), wire)


def _loading_beside(tiny: Tiny, wire: Wire, _: pytest.MonkeyPatch) -> Engine:
    engine = tiny.engine(executor=DaemonThreads())
    engine.pool.write = wire.told("PagePool.write", engine.pool.write)  # type: ignore[method-assign]
    return engine


def _static(tiny: Tiny, wire: Wire, patch: pytest.MonkeyPatch) -> Engine:
    tape, run = _ToldTape(wire), InterpretedFunction.run

    def told(kernel: Any, *args: Any, **kwargs: Any) -> None:
        tape.launch(kernel.fn.__name__)
        run(kernel, *args, **kwargs)

    patch.setattr(InterpretedFunction, "run", told)
    limits, ops = EngineLimits(max_batch_tokens=16, max_running=2), TorchOps(tiny.config.rms_norm_eps)
    order = PageOrder.PAGE_MAJOR
    return tiny.engine(40, limits, order, lambda: 0.0, 32, StaticDecoder, None, ops, tape)


def _assert_balanced(engine: Engine, where: str) -> None:
    """No page was lost or has two owners, and all come back from those who were running."""
    engine.memory.check()
    for seq in list(engine.scheduler.running):
        engine.scheduler.retire(seq)
    engine.memory.clear()
    engine.memory.check()
    assert engine.pool.num_free == engine.pool.num_pages, where


Make = Callable[[Tiny, Wire, pytest.MonkeyPatch], Engine]


def _serve(engine: Engine, tiny: Tiny) -> tuple[list[list[Event]], EngineThread, threading.Event]:
    """Two requests, of the base and of an adapter, for two tokens each: a prefill step and a decode step."""
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
    return events, thread, died


def _calls(tiny: Tiny, make: Make, patch: pytest.MonkeyPatch) -> tuple[list[str], list[list[Event]]]:
    """Those of steps in which nothing fails, and what is answered."""
    wire = Wire(None)
    with patch.context() as inner:
        whole, thread, _ = _serve(make(tiny, wire, inner), tiny)
        thread.stop(30)
    assert thread.error is None
    return wire.calls, whole


def _fail(tiny: Tiny, make: Make, patch: pytest.MonkeyPatch, at: int, whole: list[list[Event]]) -> None:
    with patch.context() as inner:
        events, faulty, died = _serve(make(tiny, Wire(at), inner), tiny)
        assert died.wait(30)
    assert isinstance(faulty.error, InjectedFault)
    assert not faulty.alive
    for told, right in zip(events, whole, strict=True):
        assert isinstance(told[-1], Failure)
        assert isinstance(told[-1].error, EngineDead)
        assert told[:-1] == right[: len(told) - 1], "tokens before the fault are those of the whole answer"
    if str(faulty.error) != "PagePool.write":  # else the adapter's pages are still those of its load
        _assert_balanced(faulty._engine, str(faulty.error))
    late: list[Event] = []
    faulty.submit(Request((5,), SamplingParams(max_tokens=1), late.append))
    assert [type(e.error) for e in late if isinstance(e, Failure)] == [EngineDead]


@pytest.mark.usefixtures("caplog")
def test_a_fault_at_any_call_of_a_step_ends_the_engine_and_tells_everybody(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, whole = _calls(tiny, _layer_by_layer, monkeypatch)
    methods = {"add_norm", "silu_mul", "greedy", "plan", "run", "write", "product", "lm_head"}
    assert {name.rpartition(".")[2] for name in calls} == methods
    for at in range(len(calls)):
        _fail(tiny, _layer_by_layer, monkeypatch, at, whole)


ONE_CALL = {"PagePool.write", "CpuStack.run", "lm_head", "product", "CpuOps.greedy"}


@pytest.mark.usefixtures("caplog")
def test_so_does_one_where_all_layers_are_one_call(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, whole = _calls(tiny, _in_one_call, monkeypatch)
    assert set(calls) >= ONE_CALL
    for name in ONE_CALL:
        last = len(calls) - 1 - calls[::-1].index(name)
        _fail(tiny, _in_one_call, monkeypatch, last, whole)


@pytest.mark.usefixtures("caplog")
def test_so_does_one_while_an_adapter_is_copied_on_another_thread(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base's answer may be whole before."""
    (_, lost), thread, died = _serve(_loading_beside(tiny, Wire(0), monkeypatch), tiny)
    assert died.wait(30)
    assert isinstance(thread.error, InjectedFault)
    assert [type(event.error) for event in lost if isinstance(event, Failure)] == [EngineDead]


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Of one layer: the interpreter is slow."""
    root = tmp_path_factory.mktemp("narrow")
    base = write_base(root / "base", layers=1)
    return Tiny(base, {"r8": write_adapter_folder(root / "r8", base, 8, 2)})


LAUNCHED = {"plan_prefill_kernel", "prefill_kernel", "kv_write_kernel", "shrink_kernel", "expand_kernel"}
RECORDED = {"plan_decode_kernel", "decode_kernel", "kv_write_kernel", "shrink_kernel", "expand_kernel"}


@pytest.mark.usefixtures("caplog")
def test_so_does_one_at_the_first_upload_or_launch_for_a_gpu(narrow: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    for at in (0, 1):
        _fail(narrow, _static, monkeypatch, at, [[], []])


@pytest.mark.fault
@pytest.mark.usefixtures("caplog")
def test_so_does_one_at_an_upload_or_a_launch_for_a_gpu(narrow: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, whole = _calls(narrow, _static, monkeypatch)
    kinds = {f"{k} launched" for k in LAUNCHED} | {f"{k} {how}" for k in RECORDED for how in ("recorded", "replayed")}
    assert set(calls) == {"upload"} | kinds
    for name in sorted(set(calls)):
        last = len(calls) - 1 - calls[::-1].index(name)
        _fail(narrow, _static, monkeypatch, last, whole)
