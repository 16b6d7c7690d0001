"""What the engine is doing, in numbers: one immutable value that its thread replaces after each step.

Readers on other threads take the value that is there; nothing is locked, and the numbers of one value belong together.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass

from readapt_runtime.engine.core import Sequence
from readapt_runtime.engine.engine import Engine
from readapt_runtime.engine.pool import PageKind

STEP_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


@dataclass(frozen=True, slots=True)
class StepTimes:
    """How long steps took: ``counts[i]`` of them at most ``STEP_BOUNDS_S[i]`` and above the bound before it."""

    counts: tuple[int, ...] = (0,) * (len(STEP_BOUNDS_S) + 1)
    total_s: float = 0.0

    def and_one(self, seconds: float) -> StepTimes:
        at = bisect_left(STEP_BOUNDS_S, seconds)
        return StepTimes((*self.counts[:at], self.counts[at] + 1, *self.counts[at + 1 :]), self.total_s + seconds)


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counts since the start for what has happened, and the present for what is."""

    at: float
    """Seconds since the epoch."""
    running: int
    waiting: int
    running_adapters: tuple[str, ...]
    """Names of adapters, each once, sorted."""
    waiting_adapters: tuple[str, ...]
    max_running: int
    kv_pages: int
    """In use by sequences."""
    cached_pages: int
    """Keys and values that nobody uses now; free when they are wanted."""
    adapter_pages: int
    free_pages: int
    adapter_loads: int
    adapter_evictions: int
    preemptions: int
    prefix_hits: int
    """Prompt tokens that did not have to be computed."""
    forward_passes: int
    steps: StepTimes

    @property
    def num_pages(self) -> int:
        return self.kv_pages + self.cached_pages + self.adapter_pages + self.free_pages


def observe(engine: Engine, steps: StepTimes) -> EngineStats:
    """The engine as it is now; on its own thread."""
    pool, scheduler = engine.pool, engine.scheduler
    residency, prefixes = engine.memory.residency, engine.memory.prefixes
    return EngineStats(
        at=time.time(),
        running=len(scheduler.running),
        waiting=len(scheduler.waiting),
        running_adapters=_adapter_names(scheduler.running),
        waiting_adapters=_adapter_names(scheduler.waiting),
        max_running=scheduler.max_running,
        kv_pages=pool.pages_used(PageKind.KV) - prefixes.idle,
        cached_pages=prefixes.idle,
        adapter_pages=pool.pages_used(PageKind.ADAPTER),
        free_pages=pool.num_free,
        adapter_loads=residency.loads,
        adapter_evictions=residency.evicted,
        preemptions=scheduler.preemptions,
        prefix_hits=prefixes.hits,
        forward_passes=engine.forward_passes,
        steps=steps,
    )


def _adapter_names(sequences: Iterable[Sequence]) -> tuple[str, ...]:
    return tuple(sorted({seq.request.variant.name for seq in sequences if seq.request.variant is not None}))
