"""The engine's thread: commands in through one queue, events out through each request's ``emit``."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

from readapt_runtime.engine.core import EngineDead, Failure, Request, Variant
from readapt_runtime.engine.engine import Engine
from readapt_runtime.engine.stats import StepTimes, observe

log = logging.getLogger(__name__)

_Command = Callable[[Engine], None]
_LAST_WORDS_S = 5.0

_STALLED_S = 0.02
"""Longest wait for an adapter before deadlines are looked at again."""


class EngineThread:
    """Drives ``Engine.step`` while there is work; every method may be called from any thread."""

    def __init__(self, engine: Engine, on_death: Callable[[], None] = lambda: None) -> None:
        self._engine = engine
        self._on_death = on_death
        engine.wake = lambda: self._inbox.put(lambda _: None)
        self._inbox: queue.SimpleQueue[_Command | None] = queue.SimpleQueue()
        self._gate = threading.Lock()  # orders submissions against the end of the loop: none is lost between the two
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self.error: Exception | None = None
        self._step_began: float | None = None
        self.stats = observe(engine, StepTimes())
        """Replaced after each step, and when there is nothing left to do."""

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self.error is None and self._thread.is_alive()

    @property
    def step_s(self) -> float:
        """Seconds that the present step has taken so far; 0 between steps."""
        began = self._step_began
        return 0.0 if began is None else time.monotonic() - began

    def submit(self, request: Request) -> None:
        """Queues the request; its events follow, at least one."""
        with self._gate:
            if not self._closed:
                self._inbox.put(lambda engine: engine.add(request))
                return
        request.emit(Failure(EngineDead("the engine has stopped")))

    def cancel(self, request: Request) -> None:
        self._inbox.put(lambda engine: engine.cancel(request))

    def forget(self, variant: Variant) -> None:
        self._inbox.put(lambda engine: engine.forget(variant))

    def preload(self, variant: Variant, on: bool) -> None:
        self._inbox.put(lambda engine: engine.preload(variant, on))

    def die(self, error: Exception) -> None:
        """What the engine needs is gone: it counts as dead from now on, even where its thread is stuck in a step.

        Its requests are told, if the thread comes to it in time. Blocks meanwhile.
        """
        log.critical("the engine lost what it needs", exc_info=error)
        first = self._record(error)
        self._inbox.put(lambda engine: None)  # wakes the thread, which finds the error
        if self._thread.is_alive():
            self._thread.join(_LAST_WORDS_S)
        if first:
            self._on_death()

    def stop(self, timeout_s: float) -> None:
        """Ends the loop after its current step; what is unfinished is answered with EngineDead."""
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _loop(self) -> None:
        try:
            moved = True
            while self._take_commands(moved):
                self._step_began = began = time.monotonic()
                moved = self._engine.step()
                self._step_began = None
                steps = self.stats.steps.and_one(time.monotonic() - began) if moved else self.stats.steps
                self.stats = observe(self._engine, steps)
            self._close()
            self._engine.abort(EngineDead("the server is shutting down"))
            self._engine.memory.clear()
            self._engine.memory.check()
        except Exception as error:
            log.critical("engine thread died", exc_info=error)
            first = self._record(error)
            try:
                self._close()
            finally:  # a broken engine may break again on what was queued: all are told nevertheless
                for seq in [*self._engine.scheduler.waiting, *self._engine.scheduler.running]:
                    seq.request.emit(Failure(EngineDead("the engine has stopped")))
                if first:
                    self._on_death()

    def _record(self, error: Exception) -> bool:
        """Whether it is the first error, which is the one that counts."""
        with self._gate:
            first, self.error = self.error is None, self.error or error
        return first

    def _take_commands(self, moved: bool) -> bool:
        """Runs what is in the inbox, waiting for it when there is nothing else to do; False means stop.

        Where nothing ``moved`` in the last step although there is work, it waits for a load to end, not for long:
        deadlines pass meanwhile. Raises what ``die`` was told.
        """
        try:
            while True:
                if not self._engine.has_work and self._inbox.empty():
                    self._engine.memory.check()
                    self.stats = observe(self._engine, self.stats.steps)
                idle = not self._engine.has_work
                command = self._inbox.get(block=idle or not moved, timeout=None if idle else _STALLED_S)
                if command is None:
                    return False
                command(self._engine)
                del command  # it may hold the last of a variant, and the next one may be long in coming
                moved = True
                if self.error is not None:
                    raise self.error
        except queue.Empty:
            return True

    def _close(self) -> None:
        """No submission after this; those still in the inbox become sequences, so that they are answered too."""
        with self._gate:
            self._closed = True
        while not self._inbox.empty():
            command = self._inbox.get_nowait()
            if command is not None:
                command(self._engine)
