"""Plots of a study, as SVG that loads nothing: what each way comes to, and its accuracy over time.

One panel per (move, task, training examples); intervals are Student's at 95 % over seeds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from intervals import half_width
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from study_curves import horizon_of, offered, steps_of
from study_rows import Row, complete

_POINTS = 200
"""Along the axis of time."""
_COLUMNS = 3
Panel = tuple[str, str, int]


def plot_study(rows: Sequence[Row], folder: Path) -> None:
    """``scores.svg``, ``seconds.svg`` and, where the rows have times, ``time.svg`` in ``folder``; none without rows."""
    if not rows:
        return
    _plot(rows, _draw_scores, folder / "scores.svg")
    _plot(rows, _draw_seconds, folder / "seconds.svg")
    timed = [row for row in complete(rows) if steps_of(row)]
    if timed:
        _plot(timed, _draw_time, folder / "time.svg")


def over_time(rows: Sequence[Row], seconds: Sequence[float]) -> tuple[list[float], list[float]]:
    """Mean accuracy of the rows at each of the seconds in percent, and half the width of its interval."""
    values = [[100 * offered(row, second) for row in rows] for second in seconds]
    return [statistics.mean(each) for each in values], [half_width(each) for each in values]


def _plot(rows: Sequence[Row], draw: Callable[[Axes, Mapping[str, list[Row]]], None], path: Path) -> None:
    panels: dict[Panel, dict[str, list[Row]]] = {}
    for row in sorted(rows, key=lambda r: r.case[:3]):
        panels.setdefault(row.case[:3], {}).setdefault(row.way, []).append(row)
    columns = min(_COLUMNS, len(panels))
    height = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(5 * columns, 3.2 * height), layout="constrained")
    for place, ((move, task, size), ways) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(height, columns, place)
        draw(axes, ways)
        axes.set_title(f"{move}, {task}, {size} examples")
        axes.grid(alpha=0.3)
    figure.savefig(path)


def _draw_scores(axes: Axes, ways: Mapping[str, list[Row]]) -> None:
    changes = [[100 * (r.score - r.old_score) for r in group] for group in ways.values()]
    _draw_bars(axes, list(ways), changes)
    axes.axvline(0.0, color="black", linewidth=0.8)
    axes.set_xlabel("change of accuracy against the old pair, points")


def _draw_seconds(axes: Axes, ways: Mapping[str, list[Row]]) -> None:
    _draw_bars(axes, list(ways), [[r.seconds for r in group] for group in ways.values()])
    axes.set_xlabel("CPU seconds to the gate's decision, without what is shared")


def _draw_bars(axes: Axes, names: Sequence[str], values: Sequence[Sequence[float]]) -> None:
    means = [statistics.mean(each) for each in values]
    widths = [half_width(each) if len(each) > 1 else 0.0 for each in values]
    axes.errorbar(means, range(len(names)), xerr=widths, fmt="o", capsize=4)
    axes.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))


def _draw_time(axes: Axes, ways: Mapping[str, list[Row]]) -> None:
    horizon = horizon_of([row for group in ways.values() for row in group])
    seconds = [horizon * n / _POINTS for n in range(_POINTS + 1)]
    for way, group in ways.items():
        means, widths = over_time(group, seconds)
        (line,) = axes.step(seconds, means, where="post", label=way)
        if len(group) > 1:
            low, high = ([m + sign * w for m, w in zip(means, widths, strict=True)] for sign in (-1, 1))
            axes.fill_between(seconds, low, high, step="post", alpha=0.15, color=line.get_color())
    axes.set(xlabel="CPU seconds, without what is shared", ylabel="accuracy on stopping examples, %")
    axes.legend(loc="lower right", fontsize="small")
