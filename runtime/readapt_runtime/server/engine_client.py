"""The event loop's side of the engine: requests in, events back on the loop.

The engine calls ``emit`` on its own thread; each event is handed to the loop, so that nothing here needs a lock.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass

from readapt_api.bounds import PRIORITY
from readapt_runtime.engine.core import Event, Failure, Request, SamplingParams, Scores, Token, Variant
from readapt_runtime.engine.thread import EngineThread

_BEFORE_ALL = int(PRIORITY.most) + 1
"""Verification is short, and what it lets in has waited for it."""


@dataclass(frozen=True, slots=True)
class Job:
    """One answer to compute."""

    prompt: tuple[int, ...]
    sampling: SamplingParams


@dataclass(frozen=True, slots=True)
class Terms:
    """On what the jobs of one request are computed; times on the client's clock."""

    variant: Variant | None
    deadline: float
    first_token_by: float
    tenant: str
    account: str
    priority: int


class EngineClient:
    """Used on one event loop."""

    def __init__(self, engine: EngineThread, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self.clock = clock

    async def answer(self, jobs: Sequence[Job], terms: Terms) -> AsyncGenerator[tuple[int, Token], None]:
        """(index of the job, token) of all jobs as they come; raises the ReadaptError of the first that fails.

        Leaving the iterator, by whatever way, cancels what is unfinished.
        """
        events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        emit = _on_loop(events)
        requests = [_request(job, emit(index), terms) for index, job in enumerate(jobs)]
        unfinished = set(range(len(requests)))
        for request in requests:
            self._engine.submit(request)
        try:
            while unfinished:
                index, event = await events.get()
                if isinstance(event, Failure):
                    unfinished.discard(index)
                    raise event.error
                if isinstance(event, Token):
                    if event.finish is not None:
                        unfinished.discard(index)
                    yield index, event
        finally:
            for index in unfinished:
                self._engine.cancel(requests[index])

    async def score(
        self, prompts: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], variant: Variant | None
    ) -> list[tuple[float, ...]]:
        """Log-probabilities of the wanted ids after each (prompt, wanted ids); raises ReadaptError."""
        events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        emit = _on_loop(events)
        greedy = SamplingParams(max_tokens=1)
        requests = [
            Request(prompt, greedy, emit(index), variant, score_ids=wanted, priority=_BEFORE_ALL)
            for index, (prompt, wanted) in enumerate(prompts)
        ]
        for request in requests:
            self._engine.submit(request)
        scores: dict[int, tuple[float, ...]] = {}
        try:
            while len(scores) < len(prompts):
                index, event = await events.get()
                if isinstance(event, Failure):
                    raise event.error
                if isinstance(event, Scores):
                    scores[index] = event.log_probs
        finally:
            for index, request in enumerate(requests):
                if index not in scores:
                    self._engine.cancel(request)
        return [scores[index] for index in range(len(prompts))]

    def forget(self, variant: Variant) -> None:
        self._engine.forget(variant)

    def preload(self, variant: Variant, on: bool) -> None:
        self._engine.preload(variant, on)


def _request(job: Job, emit: Callable[[Event], None], terms: Terms) -> Request:
    return Request(
        prompt=job.prompt,
        sampling=job.sampling,
        emit=emit,
        variant=terms.variant,
        deadline=terms.deadline,
        first_token_by=terms.first_token_by,
        tenant=terms.tenant,
        account=terms.account,
        priority=terms.priority,
    )


def _on_loop(events: asyncio.Queue[tuple[int, Event]]) -> Callable[[int], Callable[[Event], None]]:
    """``emit`` for the request of an index: puts into ``events`` on the loop that runs now."""
    loop = asyncio.get_running_loop()

    def for_index(index: int) -> Callable[[Event], None]:
        def emit(event: Event) -> None:
            try:
                loop.call_soon_threadsafe(events.put_nowait, (index, event))
            except RuntimeError:
                # the loop has ended: there is nobody left to answer, and the engine must not die of it
                if not loop.is_closed():
                    raise

        return emit

    return for_index
