"""What was measured, as pictures: distributions of latencies, bars with ranges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from measured import Measured
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


def plot_rates(groups: Mapping[str, Mapping[str, Measured]], path: Path, quantity: str = "output tokens/s") -> None:
    """One group of bars per key, one bar per name: the median, a line from the smallest to the largest; log scale."""
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    figure = Figure(figsize=(2 + 1.6 * len(groups), 4.5), layout="constrained")
    axes, width = figure.subplots(), 0.8 / len(names)
    for number, name in enumerate(names):
        there = [(at, group[name]) for at, group in enumerate(groups.values()) if name in group]
        places = [at + (number - (len(names) - 1) / 2) * width for at, _ in there]
        middles = [found.middle for _, found in there]
        below = [found.middle - min(found.values) for _, found in there]
        above = [max(found.values) - found.middle for _, found in there]
        axes.bar(places, middles, width, yerr=(below, above), capsize=2, label=name)
    axes.set_xticks(range(len(groups)), list(groups), rotation=20, ha="right")
    axes.set(ylabel=quantity, yscale="log")
    axes.grid(axis="y", alpha=0.3)
    axes.legend()
    figure.savefig(path)
