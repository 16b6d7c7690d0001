"""The engine on a GPU: H6 (decode with adapters ÷ without), H8 (swap-in), H9 (churn), H11 (graphs).

    .venv/bin/python benchmarks/serving/gpu_engine.py --base DIR [--rounds 20]

In process, bfloat16, random adapters on all linears. The answers of the engine on the GPU are checked first, as those
on the CPU are in ``server.py``; the kernels are checked by ``kernel_times.py``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from correctness import first_difference
from engine_steps import (
    activation_seconds,
    decode_seconds,
    engine_of,
    gaps_in_turn,
    upload_seconds,
    write_seconds,
)
from measured import Measured, markdown
from random_adapters import write_mixed
from residency import pool_bytes
from workloads import Workload

from readapt_runtime.engine.engine import Engine
from readapt_runtime.model.config import read_config
from readapt_runtime.server.limits import Limits

RANK, SLOT_RANK = 16, 64
DECODED = Workload("H6", (), requests=32, prompt_tokens=512, output_tokens=128)
CHURNED = Workload("H9", (), requests=200, prompt_tokens=64, output_tokens=64)
ROOM, CYCLED = 8, 16

Row = tuple[str, str, str, str]


def main(arguments: Sequence[str] | None = None) -> int:
    """0; 1 without a GPU, or when an answer is wrong, and then nothing is told."""
    told = _parser().parse_args(arguments)
    if not torch.cuda.is_available():
        sys.stderr.write("no CUDA device: decode.py and server.py measure the engine on a CPU\n")
        return 1
    with tempfile.TemporaryDirectory() as scratch:
        mixed = list(write_mixed(told.base, Path(scratch) / "checked", 4).values())
        if difference := first_difference(told.base, mixed, torch.device("cuda")):
            sys.stderr.write(f"no speed is reported: {difference}\n")
            return 1
        folders = list(write_mixed(told.base, Path(scratch) / "timed", 32, (RANK,)).values())
        rows = [*decoding(told.base, folders, DECODED), *swapping(told.base, folders[:1], told.rounds)]
        rows += churning(told.base, folders[:CYCLED], CHURNED)
    ratios = markdown([("ratio", "what", "measured", "÷"), *rows])
    sys.stdout.write(f"{torch.cuda.get_device_name()}\n\n{ratios}")
    return 0


def decoding(base: Path, folders: Sequence[Path], work: Workload) -> list[Row]:
    """H6 and H11: the same requests of the base, of four adapters, and of all."""
    tokens = work.requests * (work.prompt_tokens + work.output_tokens + 16)
    room = pool_bytes(base, RANK, len(folders) + 1, tokens)
    engine, variants = engine_of(base, folders, _limits(room))
    vocabulary = read_config(base).vocab_size
    cases = {"base": [], f"4 × r {RANK}": variants[:4], f"{len(variants)} × r {RANK}": variants}
    found: dict[str, Measured] = {}
    for name, own in cases.items():
        decode_seconds(engine, own, work, vocabulary)
        found[name] = decode_seconds(engine, own, work, vocabulary)
    without = found["base"].middle
    rows = [_times("H6", f"TPOT, {name}", m, m.middle / without) for name, m in found.items()]
    return [*rows, ("H11", "graphs per batch bucket", graphs_per_bucket(engine), "")]


def graphs_per_bucket(engine: Engine) -> str:
    """Of all that were recorded; a dash where steps are not recorded."""
    decoder = engine._model
    if not hasattr(decoder, "replays"):
        return "–"
    return f"{decoder.replays.count / len(decoder.buckets.sizes):g}"


def swapping(base: Path, folders: Sequence[Path], rounds: int) -> list[Row]:
    """H8: the first adapter's pages into the pool, beside one copy of as many bytes and vLLM's way to activate it."""
    engine, (variant,) = engine_of(base, folders, _limits(pool_bytes(base, RANK, 4, tokens=256)))
    pool, pages = engine.pool, variant.image.num_pages
    size = pages * pool.layout.page_bytes(pool.dtype)
    bytes_alone = upload_seconds(size, pool.device, rounds)
    ours = {name: write_seconds(pool, pages, name == "scattered", rounds) for name in ("neighbours", "scattered")}
    theirs = activation_seconds(base, RANK, SLOT_RANK, pool.device, rounds)
    rows = [("H8", f"{size / 1e6:.1f} MB in one copy, GB/s", f"{size / bytes_alone.middle / 1e9:.1f}", "")]
    rows += [_times("H8", f"ours, {n}; ÷ one copy", m, m.middle / bytes_alone.middle) for n, m in ours.items()]
    nearest = ours["neighbours"].middle
    return [*rows, _times("H8", "vLLM's fills and copies; ÷ ours", theirs, theirs.middle / nearest)]


def churning(base: Path, folders: Sequence[Path], work: Workload) -> list[Row]:
    """H9: as many requests at a time as adapters have room; over half of the adapters, then over all."""
    room, half = min(ROOM, len(folders) // 2), len(folders) // 2
    tokens = room * (work.prompt_tokens + work.output_tokens + 32)
    engine, variants = engine_of(base, folders, _limits(pool_bytes(base, RANK, room, tokens)))
    vocabulary = read_config(base).vocab_size
    found = {}
    for name, own in (("in turn, all have room", variants[:half]), ("in turn, half have room", variants)):
        gaps_in_turn(engine, own, work, room, vocabulary)
        before = engine.memory.residency.loads
        gaps = gaps_in_turn(engine, own, work, room, vocabulary)
        found[name] = float(np.percentile(gaps.values, 99)), engine.memory.residency.loads - before
    steady = next(iter(found.values()))[0]
    return [
        ("H9", f"ITL p99, {len(variants)} adapters {name}; {loads} loads", f"{p99 * 1e3:.2f} ms", f"{p99 / steady:.2f}")
        for name, (p99, loads) in found.items()
    ]


def _limits(pool: int) -> Limits:
    return Limits(pool_bytes=pool, host_bytes=16 << 30, max_rank=SLOT_RANK)


def _times(ratio: str, what: str, measured: Measured, quotient: float) -> Row:
    milliseconds = Measured(tuple(value * 1e3 for value in measured.values))
    return ratio, what, f"{milliseconds.text(2)} ms", f"{quotient:.2f}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, metavar="DIR")
    parser.add_argument("--rounds", type=int, default=20)
    return parser


if __name__ == "__main__":
    sys.exit(main())
