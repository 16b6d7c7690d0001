"""Distributions of a run's latencies, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from outcomes import Outcome


def plot_runs(runs: Mapping[str, Sequence[Outcome]], path: Path) -> None:
    """Share of requests by first-token time and share of gaps by length, one line per run; the suffix is the format."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    first, between = figure.subplots(1, 2)
    for name, outcomes in runs.items():
        whole = [o for o in outcomes if not o.error]
        _draw(first, name, [o.first_token_s for o in whole if o.first_token_s is not None])
        _draw(between, name, [gap for o in whole for gap in o.gaps_s])
    for axes, title in ((first, "time to first token"), (between, "gap between tokens")):
        axes.set(xlabel=f"{title}, ms", ylabel="share below", ylim=(0, 1), xscale="log")
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right")
    figure.savefig(path)


def _draw(axes: Axes, name: str, values_s: Sequence[float]) -> None:
    if values_s:
        axes.ecdf([1e3 * value for value in values_s], label=name)
