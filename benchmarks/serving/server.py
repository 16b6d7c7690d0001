"""``readapt serve`` with many adapters, and vLLM beside it: latencies under load, churn, hot loads, memory, start-up.

    .venv/bin/python benchmarks/serving/server.py --base DIR [--vllm PYTHON] [--runs 3] [--only load,churn]

Adapters are random, on all linear modules. Servers run one after the other on their own cores (``--threads``), the
client on the others. Every value is the median over runs, behind it half the distance between the largest and the
smallest. Nothing is reported unless Readapt's greedy tokens (float32, base and adapters mixed) are those of
transformers + PEFT up to near-ties.

``load``     Poisson arrivals over 32 adapters of ranks 8/16/32/64, each server in turn
``http``     processor time of a step in the engine's thread and in the one that speaks HTTP, base alone
``churn``    16 adapters in turn through room for 8, against 8 adapters in the same room
``hot-load`` ``/v1/load_lora_adapter`` over HTTP, to registered
``swap-in``  an adapter of rank 16 into the pool, packed first, from its image on the host, from disk, in process
``memory``   private memory with 32 resident adapters; what ``--registered`` adapters of rank 8 add
``start-up`` start of the process with warm files to the first 200 of ``/readyz``
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

from correctness import first_difference
from load import Target
from measured import Measured, markdown
from outcomes import Outcome, Summary, summarize, table
from processes import MAX_MODEL_LEN, Launch, Server, ServerFailed, add_server_arguments, launching, thread_seconds, warm
from random_adapters import RANKS, write_many, write_mixed, write_random
from residency import Skipped, answers, hot_loads, in_turn, pool_bytes, prompt_ids, run, swap_ins, touch
from traffic import SEED, Arrival, Profile, generate

MIXED = 32
CHURN_RANK, CHURN_FITTING, CHURN_CYCLING = 16, 8, 16
HOT_LOADS = 20
SWAPPED = 10
STREAMS, HTTP_ROUNDS = (1, 8, 32), 5
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Bench:
    """What every measurement needs."""

    told: argparse.Namespace
    launch: Launch
    scratch: Path
    mixed: Mapping[str, Path]
    vocabulary: tuple[int, int]

    def readapt(self, adapters: Mapping[str, Path], *options: str) -> AbstractContextManager[Server]:
        return self.launch.readapt(adapters, *options, command=self.told.readapt)

    def servers(self) -> Iterator[AbstractContextManager[Server]]:
        """One of each engine over the mixed adapters, started when entered."""
        yield self.readapt(self.mixed, "--pool-memory", self.told.pool)
        if self.told.vllm:
            yield self.launch.vllm(self.told.vllm, self.mixed, max(RANKS))

    def trace(self, number: int) -> list[Arrival]:
        """That of the run ``number``: the same for every server."""
        told = self.told
        duration, lengths = told.requests / told.rate, (told.prompt_tokens, told.output_tokens)
        profile = Profile(len(self.mixed), rate=told.rate, duration_s=duration)
        arrivals = generate(profile, SEED + number)
        return [Arrival(a.at, a.adapter, *lengths) for a in arrivals]

    def target(self, server: Server, models: Sequence[str]) -> Target:
        return Target(server.url, tuple(models), "base", vocabulary=self.vocabulary, extra={"ignore_eos": True})


def load(bench: Bench) -> str:
    """Latencies of each server on the same traces, and ratios run by run."""
    rows: list[tuple[str, Summary]] = []
    pictures: dict[str, list[Outcome]] = {}
    texts: dict[str, dict[str, str]] = {}
    for start in bench.servers():
        with start as server:
            touch(server, list(bench.mixed), bench.vocabulary)
            target = bench.target(server, list(bench.mixed))
            texts[server.name] = answers(server, target, bench.trace(0)[0])
            for number in range(bench.told.runs):
                outcomes = run(server, target, bench.trace(number), SEED + number)
                rows.append((server.name, summarize(outcomes)))
                pictures.setdefault(server.name, []).extend(outcomes)
    _keep(bench, "load", [{"server": name, **asdict(summary)} for name, summary in rows])
    if bench.told.out:
        from charts import plot_runs

        plot_runs(pictures, bench.told.out / "load.svg")
    return "\n".join([table(rows), _comparison(rows), agreement(texts)])


def agreement(texts: Mapping[str, Mapping[str, str]]) -> str:
    """How many of a peer's greedy answers are the first server's; in bfloat16 near-ties part some, a bug most."""
    (_, ours), *peers = texts.items()
    lines = []
    for name, theirs in peers:
        equal = sum(theirs[model] == text for model, text in ours.items())
        like_base = sum(theirs[model] == theirs["base"] for model in theirs if model != "base")
        lines.append(f"{name}: {equal} of {len(ours)} greedy answers of one mixed batch are Readapt's, ")
        lines.append(f"{like_base} adapters answer as the base does.\n")
    return "".join(lines)


def _comparison(rows: Sequence[tuple[str, Summary]]) -> str:
    names = list(dict.fromkeys(name for name, _ in rows))
    quantities: dict[str, Callable[[Summary], float]] = {
        "TTFT p50, ms": lambda s: 1e3 * s.first_token.p50 if s.first_token else float("nan"),
        "TTFT p99, ms": lambda s: 1e3 * s.first_token.p99 if s.first_token else float("nan"),
        "ITL p50, ms": lambda s: 1e3 * s.inter_token.p50 if s.inter_token else float("nan"),
        "ITL p99, ms": lambda s: 1e3 * s.inter_token.p99 if s.inter_token else float("nan"),
        "output tokens/s": lambda s: s.output_tokens_per_s,
    }
    lines = [["", *names, *(f"{name} ÷ {names[0]}" for name in names[1:])]]
    for title, value in quantities.items():
        found = [Measured(tuple(value(s) for of, s in rows if of == name)) for name in names]
        ratios = [theirs.per(found[0]).text(2) for theirs in found[1:]]
        lines.append([title, *(m.text(1) for m in found), *ratios])
    return markdown(lines)


def churn(bench: Bench) -> str:
    """ITL p99 while adapters take turns in too little room, divided by that of adapters that fit, on one server."""
    names = [f"c{k}" for k in range(CHURN_CYCLING)]
    base = bench.told.base
    folders = [write_random(base, bench.scratch / name, CHURN_RANK, seed=500 + k) for k, name in enumerate(names)]
    room = pool_bytes(base, CHURN_RANK, CHURN_FITTING, tokens=MAX_MODEL_LEN * CHURN_FITTING)
    found: dict[int, list[Summary]] = {CHURN_FITTING: [], CHURN_CYCLING: []}
    with bench.readapt(dict(zip(names, folders, strict=True)), "--pool-memory", str(room)) as server:
        touch(server, names, bench.vocabulary)
        target = bench.target(server, names)
        for number in range(bench.told.runs):
            for adapters, summaries in found.items():
                trace = in_turn(bench.trace(number), adapters)
                summaries.append(summarize(run(server, target, trace, SEED + number)))
    p99 = {n: Measured(tuple(1e3 * s.inter_token.p99 for s in all_ if s.inter_token)) for n, all_ in found.items()}
    _keep(bench, "churn", {str(n): [asdict(s) for s in summaries] for n, summaries in found.items()})
    steady, cycling = p99[CHURN_FITTING], p99[CHURN_CYCLING]
    heading = [f"ITL p99, ms: {CHURN_FITTING} adapters", f"{CHURN_CYCLING} in turn", "ratio"]
    return markdown([heading, [steady.text(1), cycling.text(1), cycling.per(steady).text(2)]])


def hot_load(bench: Bench) -> str:
    """Milliseconds of a load over HTTP, adapters of rank 16 that no server has seen, warm files."""
    root = bench.scratch / "root"
    folders = [write_random(bench.told.base, root / f"h{k}", 16, seed=700 + k) for k in range(HOT_LOADS)]
    warm(folders)
    lines, record = [["hot load over HTTP, ms", "least", "median", "largest", "CPU time of the server"]], {}
    starts: list[tuple[AbstractContextManager[Server], list[str]]] = []
    if _takes(bench, "--adapter-root"):
        options = ("--pool-memory", bench.told.pool, "--adapter-root", str(root))
        starts.append((bench.readapt({}, *options), [folder.name for folder in folders]))
    else:
        lines.append(["Readapt: skipped, its serve command knows no --adapter-root", "–", "–", "–", "–"])
    if bench.told.vllm:
        one = dict(list(bench.mixed.items())[:1])
        starts.append((bench.launch.vllm(bench.told.vllm, one, 64), [str(folder) for folder in folders]))
    for start, paths in starts:
        with start as server:
            before = server.cpu_seconds()
            try:
                seconds = hot_loads(server, paths)
            except Skipped as reason:
                lines.append([f"skipped: {reason}", "–", "–", "–", "–"])
                continue
            record[server.name] = seconds.values
            each = (server.cpu_seconds() - before) / len(paths)
            found = (min(seconds.values), seconds.middle, max(seconds.values), each)
            lines.append([server.name, *(f"{1e3 * value:.1f}" for value in found)])
    _keep(bench, "hot-load", record)
    return markdown(lines)


def swap_in(bench: Bench) -> str:
    """Milliseconds until a registered adapter of rank 16 is in the pool; files are warm."""
    folders = [write_random(bench.told.base, bench.scratch / f"s{k}", 16, seed=900 + k) for k in range(SWAPPED)]
    lines, record = [["into the pool, rank 16, ms", "least", "median", "largest"]], {}
    first, later = swap_ins(bench.told.base, folders, host_bytes=1 << 30)
    _, again = swap_ins(bench.told.base, folders, host_bytes=1)
    for title, seconds in (("packed first", first), ("from its image on the host", later), ("from disk", again)):
        record[title] = seconds.values
        found = (min(seconds.values), seconds.middle, max(seconds.values))
        lines.append([title, *(f"{1e3 * value:.1f}" for value in found)])
    _keep(bench, "swap-in", record)
    return markdown(lines)


def memory(bench: Bench) -> str:
    """MiB, private and resident; everything asked once before it is weighed."""
    pool = ("--pool-memory", bench.told.pool)
    lines, record = [["private memory", "MiB"]], {}
    with bench.readapt(bench.mixed, *pool) as server:
        touch(server, list(bench.mixed), bench.vocabulary)
        record["resident"] = server.private_bytes()
    with bench.readapt({}, *pool) as server:
        touch(server, ["base"], bench.vocabulary)
        record["bare"] = server.private_bytes()
    many = write_many(bench.told.base, bench.scratch / "many", bench.told.registered)
    lines.append([f"base, engine, {len(bench.mixed)} resident adapters", f"{record['resident'] / MIB:.0f}"])
    lines.append(["base, engine, no adapters", f"{record['bare'] / MIB:.0f}"])
    title = f"what {len(many)} registered adapters of rank 8 add"
    try:
        with bench.readapt(many, *pool) as server:
            touch(server, ["base"], bench.vocabulary)
            record["registered"] = server.private_bytes()
            lines.append([title, f"{(record['registered'] - record['bare']) / MIB:.0f}"])
    except ServerFailed as error:
        lines.append([title, f"not reached: {str(error).splitlines()[0]}"])
    _keep(bench, "memory", record)
    return markdown(lines)


def start_up(bench: Bench) -> str:
    """Seconds, imports included; engines in turn."""
    warm([bench.told.base, *bench.mixed.values()])
    ready: dict[str, list[tuple[float, float]]] = {}
    for _ in range(bench.told.runs):
        for start in bench.servers():
            with start as server:
                ready.setdefault(server.name, []).append((server.ready_s, server.ready_cpu_s))
    _keep(bench, "start-up", ready)
    rows = [[name, *(Measured(values).text(1) for values in zip(*pairs, strict=True))] for name, pairs in ready.items()]
    return markdown([[f"start-up with {len(bench.mixed)} adapters", "s", "CPU time, s"], *rows])


def http(bench: Bench) -> str:
    """Processor time of a step, by thread, with so many streams at once: what HTTP costs beside the engine."""
    lines, record = [["processor time of a step, ms", "engine", "HTTP", "other threads", "HTTP, %"]], {}
    with bench.readapt({}, "--pool-memory", bench.told.pool) as server:
        target = bench.target(server, [])
        touch(server, ["base"], bench.vocabulary)
        for streams in STREAMS:
            trace = [Arrival(0.0, None, bench.told.prompt_tokens, bench.told.output_tokens)] * streams
            before = thread_seconds(server.pid)
            for number in range(HTTP_ROUNDS):
                run(server, target, trace, SEED + number)
            spent = {i: now - before.get(i, 0.0) for i, now in thread_seconds(server.pid).items()}
            web = spent.pop(server.pid)
            engine = spent.pop(max(spent, key=lambda i: spent[i]))
            steps = HTTP_ROUNDS * bench.told.output_tokens
            each = [1e3 * seconds / steps for seconds in (engine, web, sum(spent.values()))]
            record[str(streams)] = each
            lines.append([f"{streams} streams", *(f"{ms:.2f}" for ms in each), f"{100 * each[1] / sum(each):.0f}"])
    _keep(bench, "http", record)
    return markdown(lines)


MEASUREMENTS: dict[str, Callable[[Bench], str]] = {
    "load": load,
    "http": http,
    "churn": churn,
    "hot-load": hot_load,
    "swap-in": swap_in,
    "memory": memory,
    "start-up": start_up,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when everything asked for was measured; 1 when the gate is red or a server failed."""
    told = _parser().parse_args(arguments)
    wanted = told.only.split(",") if told.only else list(MEASUREMENTS)
    if unknown := set(wanted) - set(MEASUREMENTS):
        sys.stderr.write(f"--only: {', '.join(sorted(unknown))}; there are {', '.join(MEASUREMENTS)}\n")
        return 2
    if told.out:
        told.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=told.scratch) as scratch:
        mixed = write_mixed(told.base, Path(scratch), told.adapters)
        if difference := first_difference(told.base, list(mixed.values())[: len(RANKS)]):
            sys.stderr.write(f"no speed is reported: {difference}\n")
            return 1
        with launching(told) as launch:
            return _measure(wanted, Bench(told, launch, Path(scratch), mixed, prompt_ids(told.base)))


def _measure(wanted: Sequence[str], bench: Bench) -> int:
    code = 0
    for name in wanted:
        try:
            sys.stdout.write(f"### {name}\n\n{MEASUREMENTS[name](bench)}\n")
        except (ServerFailed, Skipped) as error:
            sys.stderr.write(f"{name}: {error}\n")
            code = 1
        sys.stdout.flush()
    return code


def _takes(bench: Bench, option: str) -> bool:
    program = bench.told.readapt or [str(Path(sys.executable).with_name("readapt"))]
    wide = {"COLUMNS": "200", "PATH": ""}
    told = subprocess.run([*program, "serve", "--help"], capture_output=True, text=True, check=True, env=wide)
    return option in told.stdout


def _keep(bench: Bench, name: str, record: object) -> None:
    if bench.told.out:
        (bench.told.out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_server_arguments(parser)
    parser.add_argument("--only", default="", metavar="NAMES", help=f"comma-separated, of {', '.join(MEASUREMENTS)}")
    parser.add_argument("--requests", type=int, default=300, help="per run")
    parser.add_argument("--rate", type=float, default=2.0, help="requests per second")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--adapters", type=int, default=MIXED, help="of mixed ranks")
    parser.add_argument("--registered", type=int, default=2000, help="adapters of rank 8 in the memory measurement")
    return parser


if __name__ == "__main__":
    sys.exit(main())
