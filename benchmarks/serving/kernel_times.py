"""LoRA kernels of Readapt against vLLM 0.33's and SGLang 0.5.23's: first checked against fp64, then timed on a GPU.

    .venv/bin/python benchmarks/serving/kernel_times.py --vllm-wheel DIR --sglang-wheel DIR [--sweep]
    TRITON_INTERPRET=1 .venv/bin/python benchmarks/serving/kernel_times.py --check --vllm-wheel DIR --sglang-wheel DIR

``DIR`` is an unpacked wheel (``pip download --no-deps vllm==0.33.0``, ``unzip``). Llama-3.1-8B in bfloat16: 32 layers
of distinct random weights in one CUDA graph, so that no weights stay in the L2 cache; scratch poisoned before the
check, which every engine has to pass with every configuration that is told. Ratios are round by round, their median
and half the distance between the largest and the smallest. ``--check`` needs no GPU: all engines on a small model in
Triton's interpreter.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from attention_case import CHECKED, DecodeAttention
from lifting import NotLiftable, lift_sglang, lift_vllm
from lora_cases import Case, checked_batch, tiny
from lora_check import TOLERANCE, largest_error
from lora_engines import Config, Maker, Ours, Sglang, Tuned, Vllm

from readapt_kernels.attention.operands import HeadShape

INTERPRETED_VLLM: Config = {"block_k": 32, "split_k": 2}
"""The default splits K in 64: programs without work, minutes in the interpreter."""


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when every engine is right (and timed, where asked); 1 otherwise, and then no times are told."""
    told = _parser().parse_args(arguments)
    try:
        makers = dict(_makers(told))
    except NotLiftable as error:
        sys.stderr.write(f"{error}\n")
        return 1
    if told.check:
        return _check(makers)
    if not torch.cuda.is_available():
        sys.stderr.write("no CUDA device: --check runs everything but the clock\n")
        return 1
    from kernel_tables import compare

    return compare(makers, told.sweep, told.rounds, told.out)


def _makers(told: argparse.Namespace) -> Iterator[tuple[str, Maker]]:
    yield "Readapt", lambda case, tuned: Ours(case)
    if told.vllm_wheel:
        vllm = lift_vllm(told.vllm_wheel)
        yield "vLLM", lambda case, tuned: Vllm(case, vllm, False, tuned)
        yield "vLLM, active count", lambda case, tuned: Vllm(case, vllm, True, tuned)
    if told.sglang_wheel:
        sglang = lift_sglang(told.sglang_wheel)
        yield "SGLang csgmv", lambda case, tuned: Sglang(case, sglang, tuned)


def _check(makers: dict[str, Maker]) -> int:
    case = Case(checked_batch(), tiny(), torch.float16, torch.device("cpu"))
    lines, wrong = ["| engine | largest error of a linear or layer, fp16 | allowed |", "| --- | --- | --- |"], False
    for name, make in makers.items():
        tuned: Tuned = {("shrink", i): INTERPRETED_VLLM for i in range(4)} if name.startswith("vLLM") else {}
        error = largest_error(make(case, tuned), case)
        wrong |= not error <= TOLERANCE[case.dtype]
        lines.append(f"| {name} | {error:.1e} | {TOLERANCE[case.dtype]:.0e} |")
    attention = DecodeAttention(CHECKED, HeadShape(6, 2, 64), 2, case.dtype, case.device).largest_error()
    wrong |= not attention <= TOLERANCE[case.dtype]
    lines.append(f"| Readapt, decode attention | {attention:.1e} | {TOLERANCE[case.dtype]:.0e} |")
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if wrong else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm-wheel", type=Path, metavar="DIR")
    parser.add_argument("--sglang-wheel", type=Path, metavar="DIR")
    parser.add_argument("--check", action="store_true", help="only whether all are right, in the interpreter")
    parser.add_argument("--sweep", action="store_true", help="also the peers' best of a grid of configurations")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, metavar="DIR", help="gets kernels.svg")
    return parser


if __name__ == "__main__":
    sys.exit(main())
