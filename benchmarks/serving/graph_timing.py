"""Times on a CUDA device: work captured in a graph and replayed, contenders in turn, host time, copy bandwidth."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
from measured import Measured

_WARM_UPS = 3
_REPLAYS = 10
_COPY_BYTES = 2 << 30


def capture(work: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """Runs the work a few times on a side stream, compiling what it launches, then records it."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def graph_seconds(graphs: Mapping[str, torch.cuda.CUDAGraph], rounds: int) -> dict[str, Measured]:
    """Seconds of one replay, contenders in turn in every round, so that a ratio compares neighbours in time."""
    found: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(rounds):
        for name, graph in graphs.items():
            found[name].append(_seconds(graph.replay) / _REPLAYS)
    return {name: Measured(tuple(values)) for name, values in found.items()}


def _seconds(replay: Callable[[], None]) -> float:
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    replay()
    start.record()
    for _ in range(_REPLAYS):
        replay()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop)) / 1e3


def host_seconds(work: Callable[[], None], rounds: int) -> Measured:
    """Until the call returns, the device idle before: what a step's host thread waits for."""
    values = []
    for number in range(rounds + _WARM_UPS):
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        if number >= _WARM_UPS:
            values.append(time.perf_counter() - started)
    return Measured(tuple(values))


def copy_bandwidth(rounds: int) -> Measured:
    """Bytes read and written per second by a copy within the device's memory."""
    source, target = (torch.empty(_COPY_BYTES, dtype=torch.uint8, device="cuda") for _ in range(2))
    graph = capture(lambda: _copy(source, target))
    seconds = graph_seconds({"copy": graph}, rounds)["copy"]
    return Measured(tuple(2 * _COPY_BYTES / value for value in seconds.values))


def _copy(source: torch.Tensor, target: torch.Tensor) -> None:
    target.copy_(source)
