"""Where a decode step on a CPU goes, against what memory and arithmetic of this machine allow, as Markdown tables.

    .venv/bin/python benchmarks/serving/step_budget.py --base DIR [--batches 1 8 32] [--ranks 16] [--adapters N]
        [--temperature 0] [--top-p 1]

One process and thread, bfloat16, every row with an adapter of its own (ranks 0: base only), greedy by default. The
machine may be shared: times are of the thread's CPU time, the batches take turns, and of each item the least and the
median of all steps are told. The clock is read in the compiled call and around it, so what Python does is the
difference to the whole; reading it costs some 0.1 ms a step. With ``--adapters`` fewer adapters than rows share the
rows out evenly.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from readapt_engine import build

from readapt_kernels.cpu import library
from readapt_kernels.cpu.arena import Arena
from readapt_kernels.cpu.launcher import CpuKernels
from readapt_kernels.cpu.panels import pack
from readapt_kernels.cpu.stack import ITEMS, Stack
from readapt_runtime.engine.core import Event, Request, SamplingParams, Variant
from readapt_runtime.engine.engine import Engine
from readapt_runtime.lora_format import LoraModule
from readapt_runtime.model.adapter_image import pack_adapter
from readapt_runtime.model.config import DecoderConfig, read_config
from readapt_runtime.model.decoder import Decoder

PROMPT, STEPS = 64, 24
DTYPE = torch.bfloat16
LAYERS, HEAD, LORA, KV, SMALL, SAMPLING = "layers' weights", "lm_head", "LoRA", "attention", "norms, SiLU", "sampling"
DISPATCH, ENGINE, STEP = "dispatch", "engine", "whole step"
NAMES = {"products": LAYERS, "LoRA": LORA, "attention": KV, "small": SMALL}
"""Of the items of the compiled call."""


@dataclass
class Stopwatch:
    """Milliseconds of one step, by item; every step's are kept by batch."""

    now: Counter[str] = field(default_factory=Counter)
    steps: dict[int, list[Counter[str]]] = field(default_factory=lambda: defaultdict(list))
    inside: np.ndarray = field(default_factory=lambda: np.zeros(len(ITEMS)))

    @contextmanager
    def step(self, batch: int) -> Iterator[None]:
        self.now = Counter()
        self.inside[:] = 0
        started = time.thread_time()
        yield
        total = 1e3 * (time.thread_time() - started)
        self.now += Counter({NAMES[item]: spent for item, spent in zip(ITEMS, self.inside.tolist(), strict=True)})
        forward = self.now.pop("forward")
        self.now[DISPATCH] = forward - sum(self.now.values()) + self.now[SAMPLING]
        self.now[ENGINE] = total - forward - self.now[SAMPLING]
        self.now[STEP] = total
        self.steps[batch].append(self.now.copy())

    def timed(self, function: Callable[..., Any], item: str) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            started = time.thread_time()
            try:
                return function(*arguments)
            finally:
                self.now[item] += 1e3 * (time.thread_time() - started)

        return run

    def watch(self) -> None:
        """From here on, whatever is built in this process is watched. The layers' products are in the compiled call."""
        functions = library.load(None)  # the instance that CpuKernels takes
        for name, item in (
            ("readapt_linear_bf16", HEAD),
            ("readapt_argmax_bf16", SAMPLING),
            ("readapt_draw_bf16", SAMPLING),
        ):
            setattr(functions, name, self.timed(getattr(functions, name), item))
        setattr(Decoder, "forward", _method(self.timed(Decoder.forward, "forward")))  # noqa: B010
        Stack.spent = self.inside


def _method(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, batch: function(self, batch)


@dataclass(frozen=True)
class Machine:
    """One core of it."""

    bytes_per_ms: float
    flops_per_ms: float

    @classmethod
    def measured(cls) -> Machine:
        """The fastest of many: a sum over 256 MiB as weights lie, products of a weight that stays in L2."""
        memory = Arena().take(1 << 26, torch.float32).fill_(1.0)
        kernels, panels = CpuKernels(DTYPE), pack(torch.ones(64, 576, dtype=DTYPE), Arena())
        x = torch.ones(480, 576, dtype=DTYPE)
        read = min(_milliseconds(memory.sum) for _ in range(20))
        product = min(_milliseconds(lambda: kernels.linear(x, panels, None)) for _ in range(200))
        return cls(memory.nbytes / read, 2 * 480 * 64 * 576 / product)

    def floor(self, size: float, flops: float) -> float:
        return max(size / self.bytes_per_ms, flops / self.flops_per_ms)


def _milliseconds(work: Callable[[], object]) -> float:
    started = time.thread_time()
    work()
    return 1e3 * (time.thread_time() - started)


def main() -> None:
    arguments = _parser().parse_args()
    torch.set_num_threads(1)
    machine, config, stopwatch = Machine.measured(), read_config(arguments.base), Stopwatch()
    stopwatch.watch()
    engine, _ = build(arguments.base, [], DTYPE)
    most = min(arguments.adapters or max(arguments.batches), max(arguments.batches))
    ranks = arguments.ranks if any(arguments.ranks) else []
    variants = [_variant(n, ranks[n % len(ranks)], config, engine) for n in range(most)] if ranks else []
    sampling = SamplingParams(STEPS + 2, arguments.temperature, arguments.top_p, seed=1)
    for _ in range(arguments.rounds):
        for batch in arguments.batches:
            _decode(engine, batch, variants, stopwatch, sampling)
    sys.stdout.write(
        f"{library.usable_levels()[0]}: reads {machine.bytes_per_ms / 1e6:.1f} GB/s, "
        f"multiplies {machine.flops_per_ms / 1e6:.0f} GFLOP/s; adapters {len(variants)}, ranks {arguments.ranks}, "
        f"temperature {arguments.temperature}, top_p {arguments.top_p}, context {PROMPT + 2} to {PROMPT + 1 + STEPS}\n"
    )
    for batch in arguments.batches:
        sys.stdout.write("\n".join(_table(batch, _ranks(variants, batch), config, machine, stopwatch)) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, metavar="DIR")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--ranks", type=int, nargs="+", default=[16], help="of the adapters, in turn; 0: base only")
    parser.add_argument("--adapters", type=int, default=0, help="default: one for each row")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--temperature", type=float, default=0.0, help="of every row; 0: greedy")
    parser.add_argument("--top-p", type=float, default=1.0)
    return parser


def _variant(number: int, rank: int, config: DecoderConfig, engine: Engine) -> Variant:
    """Random factors on every linear module."""
    modules = {
        name: LoraModule(name, 0.01 * torch.randn(rank, into), 0.01 * torch.randn(out, rank), 1.0)
        for name, (out, into) in config.module_shapes.items()
    }
    image = pack_adapter(modules, config, engine.pool.layout.elements, DTYPE)
    return Variant(f"r{rank}-{number}", f"sha256:{number:064x}", image)


def _decode(
    engine: Engine, batch: int, variants: list[Variant], stopwatch: Stopwatch, sampling: SamplingParams
) -> None:
    """Runs ``batch`` requests to their end; steps in which all of them decode are kept."""
    events: list[Event] = []
    for row in range(batch):
        prompt = tuple(range(100 + row, 100 + row + PROMPT))
        variant = variants[row * min(len(variants), batch) // batch] if variants else None
        engine.add(Request(prompt, sampling, events.append, variant))
    while len(events) < 2 * batch:
        engine.step()
    for _ in range(STEPS):
        with stopwatch.step(batch):
            engine.step()
    if engine.has_work or len(events) != (STEPS + 2) * batch:
        raise RuntimeError(f"{len(events)} tokens of {batch} requests: they did not decode together")


def _ranks(variants: list[Variant], batch: int) -> list[int]:
    """Of the adapters that a batch asks."""
    return [variant.image.rank for variant in variants[:batch]]


def _table(
    batch: int, ranks: list[int], config: DecoderConfig, machine: Machine, stopwatch: Stopwatch
) -> Iterator[str]:
    yield f"\n| batch {batch} | MB | MFLOP | floor, ms | least, ms | median, ms |"
    yield "| --- | --- | --- | --- | --- | --- |"
    steps, total = stopwatch.steps[batch], 0.0
    costs = _costs(batch, ranks, config)
    for item in (LAYERS, HEAD, KV, LORA, SMALL, SAMPLING, DISPATCH, ENGINE):
        times = [step[item] for step in steps]
        size, flops = costs.get(item, (0.0, 0.0))
        floor = machine.floor(size, flops)
        total += floor
        needs = f"{size / 1e6:.1f} | {flops / 1e6:.0f} | {floor:.2f}" if item in costs else "– | – | –"
        yield f"| {item} | {needs} | {min(times):.2f} | {statistics.median(times):.2f} |"
    times = [step[STEP] for step in steps]
    yield f"| **{STEP}** | | | {total:.2f} | {min(times):.2f} | {statistics.median(times):.2f} |"


def _costs(batch: int, ranks: list[int], config: DecoderConfig) -> dict[str, tuple[float, float]]:
    """Bytes that must be read and floating-point operations, per item."""
    shapes = config.module_shapes.values()
    weights, factors = sum(out * into for out, into in shapes), sum(ranks) * sum(out + into for out, into in shapes)
    head = config.vocab_size * config.hidden_size
    tokens = batch * (PROMPT + 2 + STEPS / 2)
    keys = tokens * config.num_layers * config.head_dim
    return {
        LAYERS: (2 * weights, 2 * batch * weights),
        HEAD: (2 * head, 2 * batch * head),
        KV: (2 * 2 * keys * config.num_kv_heads, 2 * 2 * keys * config.num_heads),
        LORA: (2 * factors, 2 * batch * factors / max(len(ranks), 1)),
        SAMPLING: (2 * batch * config.vocab_size, 0),
    }


if __name__ == "__main__":
    main()
