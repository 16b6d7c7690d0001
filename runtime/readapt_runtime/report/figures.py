"""The plots of a page, as SVG that stands in the HTML itself.

Drawn by matplotlib's SVG backend without a display. Every series is a group with an id of its own, text stays text.
Names that users give never become formulas: matplotlib would read what stands between two dollar signs.
"""

from __future__ import annotations

import io
import logging
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.typing import RcKeyType

from readapt_api.jobs import RungResult
from readapt_runtime.report.findings import Learning, Lesson, Search

_STYLE: dict[RcKeyType, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "path.simplify": False,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_GOOD, _BAD, _QUIET = "#1a7f37", "#cf222e", "#6e7781"
_WIDE = 10.0
"""Inches; the page shrinks it to its width."""
_SPREAD = 10.0
"""Largest over smallest loss from which on colours follow the logarithm."""
_COLORS = mpl.colormaps["viridis"].resampled(32)
"""With more of them a colour bar would be a bitmap."""
_LAYER = re.compile(r"^(?:.*\.)?(?P<layer>\d+)\.(?P<kind>.+)$")

# On a read-only root it would tell of its font cache, between the JSON lines of a Job.
logging.getLogger("matplotlib").setLevel(logging.ERROR)


def gate_intervals(rungs: Sequence[RungResult], margin: float | None) -> str:
    """Per rung the interval of the gain over the reference, against what may be lost; None where nothing is tested."""
    unit = rungs[0].metric.unit
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDE, 1.0 + 0.5 * len(rungs)), layout="constrained")
        axes = figure.add_subplot()
        rows = list(range(len(rungs)))
        lower, upper = ([unit.factor * end for end in ends] for ends in zip(*map(_ends, rungs), strict=True))
        gains = [unit.factor * rung.metric.gain(rung.score, rung.reference) for rung in rungs]
        least = 0.0 if margin is None else -margin
        colors = [_GOOD if rung.interval.lower > least else _QUIET if margin is None else _BAD for rung in rungs]
        axes.hlines(rows, lower, upper, colors=colors, linewidth=4, alpha=0.5).set_gid("intervals")
        axes.scatter(gains, rows, c=colors, zorder=3, gid="gains")
        if margin is not None:
            axes.axvline(unit.factor * least, color=_BAD, linestyle="--", gid="allowed")
            axes.text(unit.factor * least, -0.65, " allowed", color=_BAD, va="top")
        axes.axvline(0.0, color=_QUIET, linewidth=0.8)
        axes.set(yticks=rows, yticklabels=[rung.origin.value for rung in rungs], ylim=(len(rungs) - 0.4, -0.7))
        axes.set_xlabel(f"gain over the reference, {unit.name}")
        return _svg(figure, "gate")


def search_surface(search: Search, number: int) -> str:
    """α and β of every trial; the colour is its loss, a cross says that retention was below its floor."""
    losses = [float(trial["loss"]) for trial in search.trials]
    norm = _norm([loss for loss in losses if math.isfinite(loss)])
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(0.65 * _WIDE, 4.2), layout="constrained")
        axes = figure.add_subplot()
        for gid, marker, edge, wanted in (("feasible", "o", "white", True), ("infeasible", "X", _BAD, False)):
            chosen = [i for i, ok in enumerate(search.feasible) if ok is wanted]
            x, y = ([search.trials[i][axis] for i in chosen] for axis in ("alpha", "beta"))
            colors = [losses[i] for i in chosen]
            axes.scatter(x, y, c=colors, norm=norm, cmap=_COLORS, marker=marker, s=70, edgecolors=edge, gid=gid)
        if search.start:
            place = ([search.start["alpha"]], [search.start["beta"]])
            axes.plot(*place, "o", markersize=14, markerfacecolor="none", markeredgecolor=_GOOD, gid="start")
        for order, trial in enumerate(search.trials, 1):
            axes.annotate(str(order), (trial["alpha"], trial["beta"]), (8, 6), textcoords="offset points", fontsize=7)
        axes.set(xlabel="α: share of the old update", ylabel="β: share of the base's drift")
        ticks = [float(norm.inverse(share)) for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
        bar = figure.colorbar(ScalarMappable(norm, _COLORS), ax=axes, label="loss, nats per token", format="%.3g")
        bar.set_ticks(ticks, minor=False)
        bar.minorticks_off()
        return _svg(figure, f"search{number}")


def learning_curves(learning: Learning, floor: float | None, number: int) -> str:
    """Loss of the training batches, score on the stopping examples, retention with its floor, over the steps."""
    steps = [int(evaluation["step"]) for evaluation in learning.curve]
    with mpl.rc_context(_STYLE):
        rows = 3 if learning.retentions else 2
        figure = Figure(figsize=(_WIDE, 1.6 * rows), layout="constrained")
        loss, score, *kept = (figure.add_subplot(rows, 1, row) for row in range(1, rows + 1))
        loss.plot(range(1, len(learning.train_losses) + 1), learning.train_losses, color=_QUIET, gid="train-loss")
        score.plot(steps, [e["score"] for e in learning.curve], marker="o", color=_GOOD, gid="score")
        if learning.target is not None:
            score.axhline(learning.target, color=_QUIET, linestyle="--", gid="target")
        for axes in kept:
            _draw_retention(axes, learning, floor)
        loss.set_ylabel("training loss")
        score.set_ylabel("score, higher is better")
        figure.axes[-1].set_xlabel("step")
        last = max(steps[-1], len(learning.train_losses), 1)
        for axes in figure.axes:
            axes.axvline(learning.best, color=_GOOD, linewidth=0.8, linestyle=":")
            axes.set_xlim(-0.02 * last, 1.02 * last)
        return _svg(figure, f"learning{number}")


def _draw_retention(axes: Axes, learning: Learning, floor: float | None) -> None:
    steps, values = zip(*learning.retentions, strict=True)
    axes.plot(steps, values, marker="o", gid="retention")
    axes.set_ylabel("retention")
    if floor is not None:
        axes.axhline(floor, color=_BAD, linestyle="--", gid="floor")


def lesson_curves(lessons: Sequence[Lesson]) -> str:
    """Per task the loss of its steps; below, the accuracy on every task after each one."""
    columns = min(4, len(lessons))
    rows = math.ceil(len(lessons) / columns)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDE, 2.0 * rows + 3.0), layout="constrained")
        above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(2.0 * rows, 3.0))[:, 0]
        for place, lesson in enumerate(lessons, 1):
            axes = above.add_subplot(rows, columns, place)
            axes.plot(range(1, len(lesson.losses) + 1), lesson.losses, color=_QUIET, gid=f"loss-{place}")
            axes.set(title=lesson.task, xlabel="step", ylabel="training loss" if (place - 1) % columns == 0 else "")
        axes = below.add_subplot()
        for place, lesson in enumerate(lessons, 1):
            after = range(place, len(lessons) + 1)
            known = [lessons[at - 1].accuracies[place - 1] for at in after]
            color = _COLORS((place - 1) / max(len(lessons) - 1, 1))
            axes.plot(after, known, marker="o", color=color, label=lesson.task, gid=f"accuracy-{place}")
        axes.set(xlabel="tasks learned", ylabel="accuracy", ylim=(-0.02, 1.02))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        below.legend(loc="outside right upper", frameon=False)
        return _svg(figure, "lessons")


def relative_norms(norms: Mapping[str, float]) -> str:
    """One line per kind of module over the layers: by how much each moved, as a share of its norm."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDE, 3.6), layout="constrained")
        axes = figure.add_subplot()
        for kind, members in _kinds(norms).items():
            places = sorted(members)
            heights = [norms[name] for _, name in places]
            axes.plot([layer for layer, _ in places], heights, marker="o", markersize=3, label=kind, gid=f"norm-{kind}")
        axes.set(xlabel="layer", ylabel="‖D‖ / ‖W‖", ylim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(loc="outside right upper", frameon=False)
        return _svg(figure, "norms")


def energy_spectra(modules: Mapping[str, Sequence[float]], target: float | None) -> str:
    """Per kind of module, one line per layer: the share of ‖·‖² in its first directions that were computed."""
    kinds = _kinds(modules)
    columns = min(4, len(kinds))
    rows = math.ceil(len(kinds) / columns)
    deepest = max(layer for members in kinds.values() for layer, _ in members)
    with mpl.rc_context(_STYLE):
        height = 2.2 * rows
        figure = Figure(figsize=(_WIDE, height))
        # a layout that matplotlib finds by drawing everything twice takes longer than the drawing
        figure.subplots_adjust(0.04, 0.45 / height, 0.99, 1 - 0.3 / height, wspace=0.2, hspace=0.4)
        for place, (kind, members) in enumerate(kinds.items(), 1):
            axes = figure.add_subplot(rows, columns, place)
            for layer, name in members:
                shares = [0.0, *modules[name]]
                color = _COLORS(layer / max(deepest, 1))
                axes.plot(range(len(shares)), shares, color=color, linewidth=1, gid=f"spectrum-{name}")
            if target is not None:
                axes.axhline(target, color=_BAD, linestyle="--", gid=f"target-{kind}")
            axes.set(title=kind, ylim=(0, 1.02), xlabel="rank" if place > len(kinds) - columns else "")
        return _svg(figure, "energy")


def _svg(figure: Figure, prefix: str) -> str:
    """The svg element; ``prefix`` makes its ids unique on the page."""
    stream = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": prefix}):
        figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = stream.getvalue()
    return re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{prefix}-", text[text.index("<svg") :])


def _ends(rung: RungResult) -> tuple[float, float]:
    return rung.interval.lower, rung.interval.upper


def _norm(values: Sequence[float]) -> Normalize:
    least, most = min(values, default=0.0), max(values, default=1.0)
    return LogNorm(least, most) if least > 0 and most / least > _SPREAD else Normalize(least, most)


def _kinds(modules: Iterable[str]) -> dict[str, list[tuple[int, str]]]:
    """Kind of module -> (layer, name) of each."""
    kinds: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for name in modules:
        layer, kind = _place(name)
        kinds[kind].append((layer, name))
    return kinds


def _place(module: str) -> tuple[int, str]:
    """``model.layers.3.mlp.up_proj`` -> (3, "mlp.up_proj")."""
    found = _LAYER.match(module)
    return (int(found["layer"]), found["kind"]) if found else (0, module)
