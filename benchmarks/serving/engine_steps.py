"""What an engine takes for its steps, in process and on whatever device it has: decoding, churn, copies into the pool.

Each function measures one thing; none prints.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event as Signal

import torch
from measured import Measured
from workloads import Workload

from readapt_runtime.engine.core import Event, Failure, Request, SamplingParams, Variant
from readapt_runtime.engine.engine import Engine
from readapt_runtime.engine.pool import Entry, PageKind, PagePool
from readapt_runtime.lora_format import base_shapes
from readapt_runtime.server.limits import Limits
from readapt_runtime.server.startup import Options, build

_STALLED_S = 0.02


def engine_of(base: Path, folders: Sequence[Path], limits: Limits) -> tuple[Engine, list[Variant]]:
    """As ``readapt serve`` makes it, on a GPU where there is one, in bfloat16; a variant per folder."""
    names = {folder.name: folder for folder in folders}
    machinery = build(Options(base, "base", dtype="bfloat16", adapters=names, limits=limits))
    wanted = machinery.given.adapters if machinery.given else ()
    return machinery.engine, [Variant(a.name, a.digest, machinery.source.load(a.digest).image) for a in wanted]


def decode_seconds(engine: Engine, variants: Sequence[Variant], work: Workload, vocabulary: int) -> Measured:
    """Of each step in which all requests decode: the time per output token. Request i asks variant i, in turn."""
    driver = _Driver(engine, variants, work, vocabulary)
    for number in range(work.requests):
        driver.ask(number)
    seconds: list[float] = []
    while engine.has_work:
        running = engine.scheduler.running
        whole = len(running) == work.requests and all(seq.decoding for seq in running)
        took = driver.step()
        if whole:
            seconds.append(took)
    return Measured(tuple(seconds))


def gaps_in_turn(
    engine: Engine, variants: Sequence[Variant], work: Workload, in_flight: int, vocabulary: int
) -> Measured:
    """Seconds between two tokens of an answer, all gaps of all answers; so many requests at a time.

    With more variants than the pool has room for, each one asked is the one used longest ago.
    """
    driver = _Driver(engine, variants, work, vocabulary)
    asked = 0
    while asked < work.requests or engine.has_work:
        while asked < work.requests and asked - driver.ended < in_flight:
            driver.ask(asked)
            asked += 1
        driver.step()
    return Measured(tuple(driver.gaps))


class _Driver:
    """Asks and steps; raises the error of an answer that failed."""

    def __init__(self, engine: Engine, variants: Sequence[Variant], work: Workload, vocabulary: int) -> None:
        self._engine, self._variants, self._work = engine, variants, work
        self._prompts = replace(work, vocabulary=vocabulary).prompts()
        self._loaded = Signal()
        engine.wake = self._loaded.set
        self.gaps: list[float] = []
        self.ended = 0

    def ask(self, number: int) -> None:
        variant = self._variants[number % len(self._variants)] if self._variants else None
        prompt, last = tuple(self._prompts[number]), [0.0]

        def take(event: Event) -> None:
            if isinstance(event, Failure):
                raise event.error
            now = time.perf_counter()
            if last[0]:
                self.gaps.append(now - last[0])
            last[0] = now
            self.ended += bool(getattr(event, "finish", None))

        self._engine.add(Request(prompt, SamplingParams(self._work.output_tokens), take, variant))

    def step(self) -> float:
        """Its seconds; where nothing could move it waits for a load, not for long."""
        self._loaded.clear()
        started = time.perf_counter()
        if not self._engine.step():
            self._loaded.wait(_STALLED_S)
        return time.perf_counter() - started


def write_seconds(pool: PagePool, pages: int, scattered: bool, rounds: int) -> Measured:
    """Of an image of so many pages, page-locked where there is a GPU, into an empty pool that has twice as many."""
    image = torch.zeros(pages, *pool.pages.shape[1:], dtype=pool.dtype, pin_memory=pool.device.type == "cuda")
    numbers = tuple(range(0, 2 * pages, 2)) if scattered else tuple(range(pages))
    # the pool's books do not matter here: nobody else uses it
    return seconds_of(
        lambda: pool.write(Entry(PageKind.ADAPTER, numbers, pool.accelerator.mark()), image), rounds, pool.device
    )


def upload_seconds(size: int, device: torch.device, rounds: int) -> Measured:
    """Of one copy of so many bytes from page-locked memory: what PCIe gives."""
    host = torch.zeros(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    there = torch.empty(size, dtype=torch.uint8, device=device)
    return seconds_of(lambda: there.copy_(host, non_blocking=True), rounds, device)


def activation_seconds(base: Path, rank: int, slot_rank: int, device: torch.device, rounds: int) -> Measured:
    """As vLLM 0.33 activates an adapter: both factors of each module are zeroed in their slot, then copied."""
    moves = list(_slots(base, rank, slot_rank, device))

    def activate() -> None:
        for slot, factor in moves:
            slot.zero_()
            slot[tuple(slice(size) for size in factor.shape)].copy_(factor, non_blocking=True)

    return seconds_of(activate, rounds, device)


def _slots(base: Path, rank: int, slot_rank: int, device: torch.device) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    def host(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.bfloat16, pin_memory=device.type == "cuda")

    for shape in base_shapes(base).values():
        yield torch.empty(slot_rank, shape.into, dtype=torch.bfloat16, device=device), host(rank, shape.into)
        yield torch.empty(shape.out, slot_rank, dtype=torch.bfloat16, device=device), host(shape.out, rank)


def seconds_of(work: Callable[[], object], rounds: int, device: torch.device) -> Measured:
    """Until the device is done, once before unmeasured."""
    values = []
    for number in range(rounds + 1):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number:
            values.append(time.perf_counter() - started)
    return Measured(tuple(values))
