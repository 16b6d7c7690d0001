"""Times of the engines on a GPU and the tables of H1 to H7, H10 and H12 of the serving reference."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from attention_case import LLAMA_8B, TIMED, Contexts, DecodeAttention
from graph_timing import capture, copy_bandwidth, graph_seconds, host_seconds
from lora_cases import Batch, Case, decode_batches, llama_8b
from lora_check import TOLERANCE, largest_error
from lora_engines import Config, Engine, Maker, Ours, Tuned, run_stack
from measured import Measured, markdown
from triton.errors import TritonError

OURS = "Readapt"
_SWEEP_ROUNDS = 3
_VLLM_GRID: dict[str, dict[str, Sequence[int]]] = {
    "shrink": {
        "block_m": (16, 32),
        "block_n": (16, 32),
        "block_k": (128, 256),
        "split_k": (4, 8, 16),
        "num_stages": (2, 4),
    },
    "expand": {"block_m": (16, 32, 64), "block_n": (64, 128), "block_k": (16, 32), "num_warps": (4, 8)},
}
_SGLANG_GRID: dict[str, dict[str, Sequence[int]]] = {
    "shrink": {"BLOCK_N": (16, 32), "BLOCK_K": (128, 256), "SPLIT_K": (1, 4, 8, 16), "num_stages": (2, 4)},
    "expand": {"BLOCK_N": (32, 64, 128), "BLOCK_K": (16, 32), "num_stages": (2, 3)},
}
OVERHEADS = (
    Batch("H6: decode, 4 × r 16, 32 tokens", (16,) * 4, (8,) * 4),
    Batch("H6: decode, 32 × r 16, 32 tokens", (16,) * 32, (1,) * 32),
    Batch("H12: prefill, 8 × r 16, 2,048 tokens", (16,) * 8, (256,) * 8),
)


class Wrong(Exception):
    """An engine that does not compute what fp64 says: no times are told."""


def compare(makers: Mapping[str, Maker], sweep: bool, rounds: int, out: Path | None = None) -> int:
    """Prints the tables, and draws ``kernels.svg`` in ``out``.

    1 when an engine is wrong, before any time of its case is told.
    """
    bandwidth = copy_bandwidth(rounds)
    tables = [f"{torch.cuda.get_device_name()}, copy {bandwidth.middle / 1e12:.2f} TB/s (read + write)\n"]
    lines: list[list[str]] = []
    times: dict[str, dict[str, Measured]] = {}
    tuned: dict[tuple[str, int], Tuned] = {}
    try:
        for batch in decode_batches():
            times[batch.name] = {}
            lines += _rows(_case(batch), makers, sweep, rounds, bandwidth, tuned, times[batch.name])
            torch.cuda.empty_cache()
        overheads = [_overhead(batch, rounds) for batch in OVERHEADS]
        attention = [_attention(contexts, rounds, bandwidth) for contexts in TIMED]
    except Wrong as error:
        sys.stderr.write(f"no speed is reported: {error}\n")
        return 1
    headings = [
        "batch",
        "engine",
        "µs, 32 layers",
        "÷ Readapt",
        "share of copy bandwidth",
        "weights, GiB",
        "÷ Readapt",
        "host µs a step",
        "÷ Readapt",
    ]
    tables.append(markdown([headings, *lines]))
    tables.append(markdown([["LoRA and base products ÷ base products, no attention", "ratio"], *overheads]))
    headings = ["decode attention, 32 layers", "µs", "share of copy bandwidth"]
    tables.append(markdown([headings, *attention]))
    sys.stdout.write("\n".join(tables))
    if out:
        from charts import plot_rates

        out.mkdir(parents=True, exist_ok=True)
        plot_rates(times, out / "kernels.svg", "µs, 32 layers")
    return 0


def _case(batch: Batch) -> Case:
    return Case(batch, llama_8b(), torch.bfloat16, torch.device("cuda"))


def _rows(
    case: Case,
    makers: Mapping[str, Maker],
    sweep: bool,
    rounds: int,
    bandwidth: Measured,
    tuned: dict[tuple[str, int], Tuned],
    times: dict[str, Measured],
) -> Iterator[list[str]]:
    """H1 to H5, H7 and H10 of one batch, one line per engine and configuration; its microseconds go into ``times``."""
    every = range(len(case.shapes.linears))
    engines: dict[str, Engine] = {}
    graphs: dict[str, torch.cuda.CUDAGraph] = {}
    for name, make in makers.items():
        own: Tuned = {}
        engine = make(case, own)
        engines[name], graphs[name] = engine, _checked(name, engine, case)
        if sweep and name != OURS:
            own |= tuned.setdefault((name, max(case.batch.ranks)), {}) or _best(engine, own, every, name)
            tuned[name, max(case.batch.ranks)] = dict(own)
            engines[f"{name}, swept"], graphs[f"{name}, swept"] = engine, _checked(f"{name}, swept", engine, case)
    seconds = graph_seconds(graphs, rounds)
    host = {name: _host(engine, rounds) for name, engine in engines.items()}
    for name, engine in engines.items():
        times[name] = Measured(tuple(1e6 * s for s in seconds[name].values))
        share = Measured(tuple(case.weight_bytes / s for s in seconds[name].values)).middle / bandwidth.middle
        held = engine.weight_bytes / engines[OURS].weight_bytes
        yield [
            case.batch.name,
            name,
            times[name].text(0),
            seconds[name].per(seconds[OURS]).text(2),
            f"{share:.2f}",
            f"{engine.weight_bytes / 2**30:.2f}",
            f"{held:.2f}",
            Measured(tuple(1e6 * s for s in host[name].values)).text(0),
            host[name].per(host[OURS]).text(1),
        ]


def _checked(name: str, engine: Engine, case: Case) -> torch.cuda.CUDAGraph:
    """The graph of the whole stack, after the engine was right outside it and by replay."""
    _require(name, largest_error(engine, case), case)
    graph = capture(partial(run_stack, engine, range(len(case.shapes.linears))))
    _require(f"{name}, replayed", largest_error(engine, case, graph.replay), case)
    return graph


def _require(name: str, error: float, case: Case) -> None:
    if not error <= TOLERANCE[case.dtype]:
        raise Wrong(f"{case.batch.name}: {name}: error {error:.1e}, allowed {TOLERANCE[case.dtype]:.0e}")


def _best(engine: Engine, tuned: Tuned, linears: Sequence[int], name: str) -> Tuned:
    """Per linear the fastest shrink, then with it the fastest expand; what does not compile is left out."""
    grid = _SGLANG_GRID if name.startswith("SGLang") else _VLLM_GRID
    for linear, op in itertools.product(linears, grid):
        found: list[tuple[float, Config]] = []
        for values in itertools.product(*grid[op].values()):
            config = dict(zip(grid[op], values, strict=True))
            tuned[op, linear] = config
            try:
                graph = capture(partial(run_stack, engine, (linear,)))
            except (TritonError, RuntimeError) as refused:
                sys.stderr.write(f"{name}, {op} of linear {linear}, {config}: {refused}\n")
                continue
            found.append((graph_seconds({"": graph}, _SWEEP_ROUNDS)[""].middle, config))
        tuned[op, linear] = min(found, key=lambda pair: pair[0])[1] if found else {}
    return tuned


def _host(engine: Engine, rounds: int) -> Measured:
    """What a step's host thread does before the launches; vLLM prepares for tokens and for sampler rows."""
    times = 2 if engine.name.startswith("vLLM") else 1

    def prepare() -> None:
        for _ in range(times):
            engine.prepare()

    return host_seconds(prepare, rounds)


def _overhead(batch: Batch, rounds: int) -> list[str]:
    """Base products alone and with our LoRA after each, in the order of a model."""
    case = _case(batch)
    engine, linears = Ours(case), range(len(case.shapes.linears))
    engine.prepare()
    x = [case.inputs(linear) for linear in linears]
    weights = [
        [
            torch.randn(s.out_features, s.in_features, dtype=case.dtype, device=case.device) * 0.01
            for s in case.shapes.linears
        ]
        for _ in range(case.shapes.num_layers)
    ]

    def products(lora: bool) -> None:
        for layer, linear in itertools.product(range(case.shapes.num_layers), linears):
            torch.mm(x[linear], weights[layer][linear].t(), out=engine.outputs[layer][linear])
            if lora:
                engine.add(layer, linear)

    graphs = {name: capture(partial(products, name == "both")) for name in ("base", "both")}
    seconds = graph_seconds(graphs, rounds)
    return [batch.name, seconds["both"].per(seconds["base"]).text(3)]


def _attention(contexts: Contexts, rounds: int, bandwidth: Measured) -> list[str]:
    like = _case(decode_batches()[0])
    stack = DecodeAttention(contexts, LLAMA_8B, like.shapes.num_layers, like.dtype, like.device)
    if not (error := stack.largest_error()) <= TOLERANCE[like.dtype]:
        raise Wrong(f"decode attention, {contexts.name}: error {error:.1e}, allowed {TOLERANCE[like.dtype]:.0e}")
    seconds = graph_seconds({"": capture(stack.run)}, rounds)[""]
    share = stack.bytes_read / seconds.middle / bandwidth.middle
    return [contexts.name, Measured(tuple(1e6 * s for s in seconds.values)).text(0), f"{share:.2f}"]
