"""Extraction beside mergekit and beside a plain script on torch.svd_lowrank, files to files, as a Markdown table.

    .venv/bin/python benchmarks/adaptation/extraction.py --base DIR --finetuned DIR [--mergekit PYTHON] [--rank 64]
        [--runs 5] [--threads 1] [--predict] [--json FILE]

``--mergekit`` names the Python of an environment that has ``mergekit`` 0.1.5. Every run is a process of its own, pinned
to ``--threads`` cores, the extractors in turn and in another order each time; the files have been read once before.
Seconds are of the wall and of the processor; *imports* is what the same Python takes to load what the extractor needs
and nothing else, *work* the rest, run by run. ``readapt extract`` also draws a page about what it did. Each number is
the median, behind it half the distance between the largest and the smallest. The errors are ‖ΔW - B A‖ in float64 of
every linear module of the decoder layers, from the files that the last run wrote, divided by that of the best
approximation of the same rank (LAPACK, all singular values). ``--predict`` extracts one layer of the shapes of
Llama-3.1-8B too, and says what a pair of it would take.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from extraction_errors import excess, optima
from extraction_large import LARGE, predict, write_layer

HERE = Path(__file__).parent
WITHIN = 1.01
COMMAND_IMPORTS = "import readapt_runtime.cli, readapt_runtime.extract.command, readapt_runtime.report.page"


@dataclass(frozen=True, slots=True)
class Extractor:
    """A command that writes a PEFT folder; ``{}`` is where."""

    name: str
    command: tuple[str, ...]
    imports: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one process that has ended."""

    wall_s: float
    cpu_s: float
    peak_mib: float


def main() -> int:
    arguments = _parser().parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        found = _compare(arguments, Path(scratch))
        if arguments.predict:
            found[LARGE] = _predict(arguments, Path(scratch))
    sys.stdout.write(_table(found, arguments) + "\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, metavar="DIR")
    parser.add_argument("--finetuned", type=Path, required=True, metavar="DIR")
    parser.add_argument("--mergekit", type=Path, metavar="PYTHON")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--predict", action="store_true", help="also one layer of the shapes of Llama-3.1-8B")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="where to write; default: the system's")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all values, run by run")
    return parser


def _compare(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    extractors = _extractors(arguments, arguments.base, arguments.finetuned)
    costs: dict[str, list[tuple[Cost, Cost]]] = {extractor.name: [] for extractor in extractors}
    for run in range(-1, arguments.runs):  # the first one reads all files and counts nothing
        turn = run % len(extractors)
        for extractor in extractors[turn:] + extractors[:turn]:
            cost = _run(extractor.command, scratch / f"{extractor.name} {run}", arguments.threads)
            imports = _run(extractor.imports, scratch, arguments.threads)
            costs[extractor.name] += [(cost, imports)] if run >= 0 else []
    best = optima(arguments.base, arguments.finetuned, arguments.rank)
    last = {extractor.name: scratch / f"{extractor.name} {arguments.runs - 1}" for extractor in extractors}
    errors = {n: excess(arguments.base, arguments.finetuned, folder, best) for n, folder in last.items()}
    return {name: {**_values(costs[name]), "excess": errors[name]} for name in costs}


def _extractors(arguments: argparse.Namespace, base: Path, finetuned: Path) -> list[Extractor]:
    rank, python = str(arguments.rank), sys.executable
    ours = [str(Path(python).with_name("readapt")), "extract", "--base", str(base), "--finetuned", str(finetuned)]
    ours += ["--rank", rank, "--max-rank", rank, "--device", "cpu", "--out", "{}"]
    plain = (python, str(HERE / "extraction_by_readapt.py"), str(base), str(finetuned), "{}", rank)
    found = [
        Extractor("readapt, without a page", plain, (python, "-c", "import readapt_runtime.extract")),
        Extractor("readapt extract", tuple(ours), (python, "-c", COMMAND_IMPORTS)),
    ]
    if arguments.mergekit:
        theirs = [str(arguments.mergekit.with_name("mergekit-extract-lora")), "--model", str(finetuned)]
        theirs += ["--base-model", str(base), "--max-rank", rank, "--device", "cpu", "--quiet", "--out-path", "{}"]
        found.append(
            Extractor(
                "mergekit", tuple(theirs), (str(arguments.mergekit), "-c", "import mergekit.scripts.extract_lora")
            )
        )
    for iterations in (2, 4):
        script = [python, str(HERE / "extraction_by_torch.py"), str(base), str(finetuned), "{}", rank]
        imports = (python, "-c", "import torch, safetensors.torch")
        found.append(Extractor(f"svd_lowrank, niter {iterations}", (*script, str(iterations)), imports))
    return found


def _run(command: tuple[str, ...], out: Path, threads: int) -> Cost:
    """Raises CalledProcessError when the command fails."""
    cores = ",".join(str(core) for core in sorted(os.sched_getaffinity(0))[:threads])
    pinned = ["taskset", "-c", cores, *(part.replace("{}", str(out)) for part in command)]
    fixed = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    started = time.monotonic()
    process = subprocess.Popen(pinned, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=os.environ | fixed)
    said = process.stderr.read() if process.stderr else b""
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, pinned, stderr=said[-2000:])
    return Cost(time.monotonic() - started, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def _values(costs: list[tuple[Cost, Cost]]) -> dict[str, list[float]]:
    return {
        "wall_s": [cost.wall_s for cost, _ in costs],
        "cpu_s": [cost.cpu_s for cost, _ in costs],
        "imports_wall_s": [imports.wall_s for _, imports in costs],
        "imports_cpu_s": [imports.cpu_s for _, imports in costs],
        "work_wall_s": [cost.wall_s - imports.wall_s for cost, imports in costs],
        "work_cpu_s": [cost.cpu_s - imports.cpu_s for cost, imports in costs],
        "peak_mib": [cost.peak_mib for cost, _ in costs],
    }


def _predict(arguments: argparse.Namespace, scratch: Path) -> dict[str, float]:
    base, finetuned = write_layer(scratch / "large")
    extractor = _extractors(arguments, base, finetuned)[0]
    costs = [_run(extractor.command, scratch / f"layer {run}", arguments.threads) for run in range(2)]
    imports = _run(extractor.imports, scratch, arguments.threads)
    return predict(costs[-1].wall_s - imports.wall_s, costs[-1].cpu_s - imports.cpu_s, costs[-1].peak_mib)


def _table(found: Mapping[str, Any], arguments: argparse.Namespace) -> str:
    compared = {name: values for name, values in found.items() if name != LARGE}
    lines = [["", *compared], ["---"] * (len(compared) + 1)]
    for key, text in {
        "work_wall_s": "work, s",
        "work_cpu_s": "work, CPU-s",
        "wall_s": "whole command, s",
        "cpu_s": "whole command, CPU-s",
        "imports_cpu_s": "imports, CPU-s",
        "peak_mib": "largest resident, MiB",
    }.items():
        digits = 0 if key == "peak_mib" else 2
        lines.append([text, *(_spread(values[key], digits) for values in compared.values())])
    ratios = {name: sorted(values["excess"].values()) for name, values in compared.items()}
    lines.append(["modules", *(str(len(r)) for r in ratios.values())])
    lines.append(["error / optimum, median", *(f"{r[len(r) // 2]:.4f}" for r in ratios.values())])
    lines.append(["error / optimum, largest", *(f"{r[-1]:.4f}" for r in ratios.values())])
    lines.append([f"modules above {WITHIN}", *(str(sum(x > WITHIN for x in r)) for r in ratios.values())])
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    if LARGE in found:
        facts = ", ".join(f"{name} {value:.4g}" for name, value in found[LARGE].items())
        text += f"\n\n{LARGE}, rank {arguments.rank}, {arguments.threads} core(s): {facts}"
    return text


def _spread(values: Sequence[float], digits: int) -> str:
    """The median, and half the distance between the largest and the smallest."""
    return f"{statistics.median(values):.{digits}f} ± {(max(values) - min(values)) / 2:.{digits}f}"


if __name__ == "__main__":
    sys.exit(main())
