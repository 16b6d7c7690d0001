"""What adapters cost while they come and go: churn, hot loads, memory.

Each function measures one thing on servers that somebody else starts; none prints.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event

import httpx
from load import VOCABULARY, Target, replay
from measured import Measured
from outcomes import Outcome
from processes import Server
from traffic import SEED, Arrival

from readapt_runtime.engine.core import Variant
from readapt_runtime.lora_format import base_shapes
from readapt_runtime.model.config import read_config
from readapt_runtime.server.limits import Limits
from readapt_runtime.server.startup import Options, build

BF16_BYTES = 2
MAX_RANK = 64
ROUNDS = 3


class Skipped(Exception):
    """A measurement that this server cannot take part in; the text says why."""


def in_turn(trace: Sequence[Arrival], adapters: int) -> list[Arrival]:
    """The same arrivals, adapters one after the other: with more than fit, each is the one used longest ago."""
    return [Arrival(a.at, i % adapters, a.prompt_tokens, a.output_tokens) for i, a in enumerate(trace)]


def pool_bytes(base: Path, rank: int, adapters: int, tokens: int) -> int:
    """Room for so many adapters of a rank on all linears and so many tokens of KV, in bfloat16."""
    config = read_config(base)
    adapter = rank * sum(shape.out + shape.into for shape in base_shapes(base).values())
    kv = 2 * config.num_kv_heads * config.head_dim * config.num_layers
    return BF16_BYTES * (adapters * adapter + tokens * kv)


def prompt_ids(base: Path) -> tuple[int, int]:
    """Token ids of prompts that the base has; the upper bound is left out."""
    low, high = VOCABULARY
    return low, min(high, read_config(base).vocab_size)


def touch(server: Server, models: Sequence[str], vocabulary: tuple[int, int]) -> None:
    """One short answer of each model, one after the other: verified and resident afterwards, where there is room.

    Raises Skipped with the first error.
    """
    target = Target(server.url, tuple(models), vocabulary=vocabulary)
    for index, model in enumerate(models):
        (outcome,) = asyncio.run(replay([Arrival(0.0, index, 4, 2)], target))
        if outcome.error:
            raise Skipped(f"{server.name}: {model}: {outcome.error}")


def answers(server: Server, target: Target, arrival: Arrival) -> dict[str, str]:
    """Greedy texts of all models to one prompt, asked at once, so that engines batch them; by model.

    Raises Skipped with the first refusal.
    """
    models = [*target.models, target.base]
    asked = [target.body(replace(arrival, adapter=k), SEED) for k in range(len(target.models))]
    asked.append(target.body(replace(arrival, adapter=None), SEED))
    with httpx.Client(base_url=server.url, timeout=600.0) as http, ThreadPoolExecutor(len(asked)) as pool:
        found = list(pool.map(lambda body: http.post("/v1/completions", json=body), asked))
    for model, answer in zip(models, found, strict=True):
        if answer.status_code != httpx.codes.OK:
            raise Skipped(f"{server.name}: {model}: HTTP {answer.status_code}")
    return {model: answer.json()["choices"][0]["text"] for model, answer in zip(models, found, strict=True)}


def run(server: Server, target: Target, trace: Sequence[Arrival], seed: int) -> list[Outcome]:
    """Raises Skipped when an answer failed: a ratio of incomplete runs says nothing."""
    outcomes = asyncio.run(replay(trace, target, seed))
    if failed := [o for o in outcomes if o.error]:
        raise Skipped(f"{server.name}: {len(failed)} of {len(outcomes)} requests failed, such as: {failed[0].error}")
    return outcomes


def hot_loads(server: Server, paths: Sequence[str]) -> Measured:
    """Seconds of each ``/v1/load_lora_adapter``; ``paths`` are what the server takes as ``lora_path``.

    Every adapter is unloaded again. Raises Skipped where the endpoint is missing or refuses.
    """
    seconds: list[float] = []
    with httpx.Client(base_url=server.admin, timeout=60.0) as http:
        for number, path in enumerate(paths):
            wish = {"lora_name": f"hot-{number}", "lora_path": path}
            started = time.perf_counter()
            answer = http.post("/v1/load_lora_adapter", json=wish)
            seconds.append(time.perf_counter() - started)
            if answer.status_code != httpx.codes.OK:
                raise Skipped(f"{server.name}: /v1/load_lora_adapter: {answer.status_code} {answer.text[:200]}")
            http.post("/v1/unload_lora_adapter", json={"lora_name": wish["lora_name"]}).raise_for_status()
    return Measured(tuple(seconds))


def swap_ins(base: Path, folders: Sequence[Path], host_bytes: int) -> tuple[Measured, Measured]:
    """Seconds from the wish for a registered adapter to its pages in the pool, in process: the first time, and later.

    As far as ``host_bytes`` reach it is packed the first time, and later its image is there; else its files are read,
    hashed and packed each time. Later are ``ROUNDS``.
    """
    room = pool_bytes(base, MAX_RANK, 1, tokens=0)
    limits = Limits(pool_bytes=room, host_bytes=host_bytes, max_rank=MAX_RANK)
    names = {folder.name: folder for folder in folders}
    machinery = build(Options(base, "base", dtype="bfloat16", adapters=names, limits=limits))
    memory, ended, seconds = machinery.engine.memory, Event(), []
    machinery.engine.wake = ended.set
    wanted = machinery.given.adapters if machinery.given else ()
    variants = [Variant(a.name, a.digest, machinery.source.load(a.digest).image) for a in wanted]
    for variant in variants * (1 + ROUNDS):
        ended.clear()
        started = time.perf_counter()
        memory.load(variant, ())
        while not memory.residency.is_resident(variant):
            ended.wait()
            if failed := memory.settle_loads(lambda: ()):
                raise Skipped(f"{variant.name}: {failed[0][1]}")
        seconds.append(time.perf_counter() - started)
        memory.clear()
    return Measured(tuple(seconds[: len(variants)])), Measured(tuple(seconds[len(variants) :]))
