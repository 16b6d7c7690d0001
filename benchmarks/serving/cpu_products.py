"""Our products with bfloat16 weights against oneDNN's, by shape and number of rows, as a Markdown table.

    .venv/bin/python benchmarks/serving/cpu_products.py [--rounds 8]

One thread. Each cell reads other weights in turn, more than the caches hold, as a decode step does; the three variants
take turns, and a cell is the least CPU time of a product in microseconds: oneDNN / ours on oneDNN's memory / ours on
memory of an arena. The second tells what the kernel does, the third adds what huge pages do.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import torch

from readapt_kernels.cpu.arena import Arena
from readapt_kernels.cpu.launcher import CpuKernels
from readapt_kernels.cpu.panels import Panels, pack, view_onednn

SHAPES = [(960, 576), (576, 576), (3072, 576), (576, 1536), (49152, 576), (2048, 2048), (16384, 2048), (2048, 8192)]
"""SmolLM2-135M: qkv, o, gate-up, down, lm_head; then widths of a 1B Llama."""
ROWS = (1, 2, 4, 8, 16, 32, 64, 256)
_BYTES = 64 << 20
"""Weights of a cell, twice the last-level cache."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    sys.stdout.write("| outputs × inputs | " + " | ".join(f"{rows} rows" for rows in ROWS) + " |\n")
    sys.stdout.write("| --- " * (len(ROWS) + 1) + "|\n")
    for outputs, inputs in SHAPES:
        cells = _cells(outputs, inputs, rounds)
        sys.stdout.write(f"| {outputs} × {inputs} | " + " | ".join(cells) + " |\n")
        sys.stdout.flush()


def _cells(outputs: int, inputs: int, rounds: int) -> list[str]:
    kernels, arena = CpuKernels(torch.bfloat16), Arena()
    packed, shared, own = [], [], []
    for _ in range(max(1, _BYTES // (2 * outputs * inputs))):
        weight = torch.randn(outputs, inputs).bfloat16()
        packed.append(torch.ops.mkldnn._reorder_linear_weight(weight, None))
        shared.append(_viewed(packed[-1], weight))
        own.append(pack(weight, arena))
    product = torch.ops.mkldnn._linear_pointwise.default
    cells = []
    for rows in ROWS:
        x = torch.randn(rows, inputs).bfloat16()
        variants: list[Callable[[int], object]] = [
            lambda i, x=x: product(x, packed[i], None, "none", [], ""),
            lambda i, x=x: kernels.linear(x, shared[i], None),
            lambda i, x=x: kernels.linear(x, own[i], None),
        ]
        least = [float("inf")] * len(variants)
        for _ in range(rounds):
            for which, run in enumerate(variants):
                least[which] = min(least[which], _microseconds(run, len(packed)))
        cells.append(" / ".join(f"{value:.0f}" for value in least))
    return cells


def _viewed(packed: torch.Tensor, weight: torch.Tensor) -> Panels:
    panels = view_onednn(packed, weight)
    if panels is None:
        raise SystemExit("oneDNN packs weights in another way on this processor: nothing to compare on its memory")
    return panels


def _microseconds(run: Callable[[int], object], count: int) -> float:
    started = time.thread_time()
    for index in range(count):
        run(index)
    return 1e6 * (time.thread_time() - started) / count


if __name__ == "__main__":
    main()
