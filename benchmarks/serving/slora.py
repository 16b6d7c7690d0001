"""S-LoRA's workload on ``readapt serve``, and on vLLM beside it: throughput, latencies and attainment, one row each.

    .venv/bin/python benchmarks/serving/slora.py --base DIR [--settings S1,S2,S4] [--vary cv=4 --vary adapters=20,200]
        [--vllm PYTHON] [--runs 3]

Every setting has its ranks on the base that is given; a ``--vary`` adds rows in which that one parameter differs.
Adapters are random, on all linear modules, and start on disk. Servers run one after the other on their own cores, all
on the same traces; a failed request misses its objective. Every value is the median over runs, behind it half the
distance between the largest and the smallest. Nothing is reported unless Readapt's greedy tokens (float32, base and
adapters mixed) are those of transformers + PEFT up to near-ties.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from correctness import first_difference
from load import Target, replay
from measured import Measured, markdown
from outcomes import FIRST_TOKEN_SLO_S, Outcome, Summary, summarize
from processes import Launch, Server, ServerFailed, add_server_arguments, launching
from random_adapters import RANKS, write_many, write_mixed
from residency import Skipped, prompt_ids, touch
from traffic import SETTINGS, BadTraffic, Profile, Setting, add_profile_arguments, generate, profile_of

VARIED: dict[str, Callable[[str], float]] = {"adapters": int, "alpha": float, "cv": float, "rate": float}
LENGTHS, DURATION_S = 0.125, 60.0
"""Defaults for one core: an eighth of the paper's lengths, a fifth of its time."""
SLOS_S = (FIRST_TOKEN_SLO_S, 0.5)


@dataclass(frozen=True, slots=True)
class Row:
    """One setting and one profile."""

    setting: str
    profile: Profile

    @property
    def title(self) -> str:
        p, ranks = self.profile, "/".join(map(str, SETTINGS[self.setting].ranks))
        return f"{self.setting} (r {ranks}), {p.adapters} adapters, alpha {p.alpha:g}, cv {p.cv:g}, {p.rate:g}/s"


def plan(settings: Sequence[str], profile: Profile, varied: Sequence[tuple[str, float]]) -> list[Row]:
    """The profile in every setting, then each change by itself. Raises BadTraffic for a value that makes no sense."""
    profiles = [profile, *(replace(profile, **{name: value}) for name, value in varied)]
    return [Row(setting, changed) for setting in settings for changed in dict.fromkeys(profiles)]


Found = dict[Row, dict[str, list[list[Outcome]]]]
"""By row and engine, the outcomes of each run."""


def measure(told: argparse.Namespace, rows: Sequence[Row], launch: Launch, scratch: Path) -> Found:
    """Raises ServerFailed, and Skipped when not even the base answers."""
    found: Found = defaultdict(dict)
    for name in dict.fromkeys(row.setting for row in rows):
        mine = [row for row in rows if row.setting == name]
        setting, most = SETTINGS[name], max(row.profile.adapters for row in mine)
        adapters = write_adapters(told.base, scratch / name, setting, most)
        for start in _servers(told, launch, adapters, max(setting.ranks)):
            with start as server:
                target = Target(server.url, tuple(adapters), "base", prompt_ids(told.base), {"ignore_eos": True})
                touch(server, ["base"], target.vocabulary)
                for row in mine:
                    found[row][server.name] = [
                        asyncio.run(replay(generate(row.profile, seed), target, seed))
                        for seed in range(told.seed, told.seed + told.runs)
                    ]
                    sys.stderr.write(f"{row.title}: {server.name}\n")
    return found


def write_adapters(base: Path, root: Path, setting: Setting, count: int) -> dict[str, Path]:
    """By name; adapter k has the k-th rank in turn."""
    ranks = setting.ranks
    parts = [iter(write_many(base, root / f"r{rank}", -(-count // len(ranks)), rank).values()) for rank in ranks]
    return {f"a{k}": next(parts[k % len(ranks)]) for k in range(count)}


def _servers(
    told: argparse.Namespace, launch: Launch, adapters: Mapping[str, Path], rank: int
) -> Iterator[AbstractContextManager[Server]]:
    yield launch.readapt(adapters, "--pool-memory", told.pool, "--host-memory", told.host_memory, command=told.readapt)
    if told.vllm:
        yield launch.vllm(told.vllm, adapters, rank, slots=told.vllm_slots)


def tell(found: Found, slos: Sequence[float]) -> str:
    """A line per row and engine; the ratio of throughputs run by run."""
    values = _COLUMNS | {f"TTFT < {slo:g} s, %": _attained(slo) for slo in slos}
    lines = [["workload", "engine", "whole / sent", "we ÷ it, tokens/s", *values]]
    for row, engines in found.items():
        first, *_ = engines
        runs = {name: [summarize(outcomes, slos) for outcomes in all_] for name, all_ in engines.items()}
        rates = {name: Measured(tuple(s.output_tokens_per_s for s in all_)) for name, all_ in runs.items()}
        for name, summaries in runs.items():
            ratio = "–" if name == first else rates[first].per(rates[name]).text(2)
            whole = f"{sum(s.completed for s in summaries)} / {sum(s.requests for s in summaries)}"
            cells = [Measured(tuple(map(value, summaries))).text(0) for value in values.values()]
            lines.append([row.title, name, whole, ratio, *cells])
    return markdown(lines)


Value = Callable[[Summary], float]
_COLUMNS: dict[str, Value] = {
    "tokens/s": lambda s: s.output_tokens_per_s,
    "TTFT p50, ms": lambda s: 1e3 * s.first_token.p50 if s.first_token else math.nan,
    "TTFT p99, ms": lambda s: 1e3 * s.first_token.p99 if s.first_token else math.nan,
    "ITL p99, ms": lambda s: 1e3 * s.inter_token.p99 if s.inter_token else math.nan,
}


def _attained(slo: float) -> Value:
    return lambda s: 100 * s.attainment[f"{slo:g}"]


def _keep(out: Path, found: Found) -> None:
    """``slora.json`` with every outcome, and a picture of latencies for each row."""
    from charts import plot_runs

    records = []
    for number, (row, engines) in enumerate(found.items()):
        outcomes = {name: [[asdict(o) for o in run] for run in runs] for name, runs in engines.items()}
        records.append({"setting": row.setting, "profile": asdict(row.profile), "runs": outcomes})
        plot_runs(
            {name: [o for run in runs for o in run] for name, runs in engines.items()}, out / f"slora-{number}.svg"
        )
    (out / "slora.json").write_text(json.dumps(records, indent=1) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when every request was answered; 1 when not, when the gate is red or a server failed; 2 for a bad wish."""
    told = _parser().parse_args(arguments)
    try:
        rows = plan(told.settings, profile_of(told), told.vary)
    except BadTraffic as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if told.out:
        told.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=told.scratch) as scratch:
        gate = write_mixed(told.base, Path(scratch) / "gate", len(RANKS))
        if difference := first_difference(told.base, list(gate.values())):
            sys.stderr.write(f"no speed is reported: {difference}\n")
            return 1
        try:
            with launching(told, model_len(rows[0].profile)) as launch:
                found = measure(told, rows, launch, Path(scratch))
        except (ServerFailed, Skipped) as error:
            sys.stderr.write(f"{error}\n")
            return 1
    sys.stdout.write(tell(found, told.slo or SLOS_S))
    if told.out:
        _keep(told.out, found)
    every = [outcome for engines in found.values() for runs in engines.values() for run in runs for outcome in run]
    return 1 if any(outcome.error for outcome in every) else 0


def model_len(profile: Profile) -> int:
    """Tokens of the longest request, rounded up to whole blocks of 16."""
    longest = profile.input_range[1] + profile.output_range[1]
    return -(-longest // 16) * 16


def _settings(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(SETTINGS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}; there are {', '.join(SETTINGS)}")
    return names


def _varied(text: str) -> list[tuple[str, float]]:
    name, _, values = text.partition("=")
    if name not in VARIED:
        raise argparse.ArgumentTypeError(f"{name}; there are {', '.join(VARIED)}")
    return [(name, VARIED[name](value)) for value in values.split(",")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_server_arguments(parser)
    parser.add_argument("--settings", type=_settings, default=["S1", "S2", "S4"], metavar="NAMES", help="of S1 to S6")
    parser.add_argument(
        "--vary",
        type=_varied,
        action="extend",
        default=[],
        metavar="NAME=VALUES",
        help=f"of {', '.join(VARIED)}; repeatable",
    )
    add_profile_arguments(parser)
    parser.set_defaults(lengths=LENGTHS, duration=DURATION_S)
    parser.add_argument("--slo", type=float, action="append", metavar="SECONDS", help="first token; default 6 and 0.5")
    parser.add_argument("--host-memory", default="1Gi", metavar="AMOUNT", help="for images of adapters")
    parser.add_argument("--vllm-slots", type=int, default=32, metavar="N", help="adapters that vLLM may batch")
    return parser


if __name__ == "__main__":
    sys.exit(main())
