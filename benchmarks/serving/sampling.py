"""What it costs to pick the tokens of a step on a CPU, as a Markdown table: milliseconds of one thread's CPU time.

    .venv/bin/python benchmarks/serving/sampling.py [--rows 1 8 32] [--vocabularies 49152 128256] [--rounds 20]

Logits are normal with a deviation of 3, in bfloat16; the temperature is 1. The least of all rounds is told, of the
compiled kernel and of torch, which also serves where there is no compiler.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch

from readapt_runtime.engine.core import Request, SamplingParams, Sequence
from readapt_runtime.engine.draws import Draws
from readapt_runtime.engine.sampler import pick
from readapt_runtime.model.cpu_ops import CpuOps
from readapt_runtime.model.ops import Ops, TorchOps

CASES = {"greedy": (0.0, 1.0), "top_p 1": (1.0, 1.0), "top_p 0.9": (1.0, 0.9)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[49152, 128256])
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    headings = ["vocabulary", "rows of", *(f"{rows} rows, kernel / torch" for rows in arguments.rows)]
    lines = [headings, ["---"] * len(headings)]
    both = (CpuOps(1e-6, torch.bfloat16), TorchOps(1e-6))
    for vocab in arguments.vocabularies:
        for name, case in CASES.items():
            cells = [
                " / ".join(f"{_least(ops, rows, vocab, *case, arguments.rounds):.2f}" for ops in both)
                for rows in arguments.rows
            ]
            lines.append([f"{vocab:,}", name, *cells])
    sys.stdout.write("\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n")


def _least(ops: Ops, rows: int, vocab: int, temperature: float, top_p: float, rounds: int) -> float:
    logits = (3 * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(rows))).bfloat16()
    params = [SamplingParams(1, temperature, top_p, seed=row) for row in range(rows)]
    draws = Draws.of([Sequence(Request((1,), p, lambda _: None), [1]) for p in params])
    times = []
    for _ in range(rounds):
        started = time.thread_time()
        pick(logits, *ops.greedy(logits), draws, ops.draw)
        times.append(1e3 * (time.thread_time() - started))
    return min(times)


if __name__ == "__main__":
    main()
