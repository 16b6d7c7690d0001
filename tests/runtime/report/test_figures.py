"""Every data point of a plot is in its SVG, where the axes put it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from readapt_runtime.extract.report import ExtractReport
from readapt_runtime.report import figures
from readapt_runtime.report.findings import Findings, Lesson

_SVG = "{http://www.w3.org/2000/svg}"


class Drawing:
    """One plot, by the ids of its series."""

    def __init__(self, svg: str) -> None:
        self.root = ElementTree.fromstring(svg)
        self.prefix = next(e.attrib["id"] for e in self.root if "id" in e.attrib).partition("-")[0]

    def marks(self, series: str) -> np.ndarray:
        """[points, 2] places of the markers."""
        used = self._group(series).iter(f"{_SVG}use")
        return np.array([(float(e.attrib["x"]), float(e.attrib["y"])) for e in used]).reshape(-1, 2)

    def paths(self, series: str) -> list[np.ndarray]:
        """The corners of every line."""
        lines = [e for e in self._group(series) if e.tag == f"{_SVG}path"]
        numbers = [[float(n) for n in re.findall(r"-?\d+(?:\.\d+)?", line.attrib["d"])] for line in lines]
        return [np.array(row).reshape(-1, 2) for row in numbers]

    def texts(self) -> list[str]:
        return ["".join(e.itertext()) for e in self.root.iter(f"{_SVG}text")]

    def _group(self, series: str) -> ElementTree.Element:
        return next(e for e in self.root.iter(f"{_SVG}g") if e.attrib.get("id") == f"{self.prefix}-{series}")


def assert_drawn(places: np.ndarray, x: Sequence[float], y: Sequence[float]) -> None:
    """``places`` are the points under one affine map per axis; y grows downwards in SVG."""
    assert len(places) == len(x) == len(y)
    for column, values in ((0, np.array(x)), (1, np.array(y))):
        if len(set(values)) > 1:
            slope, offset = np.polyfit(values, places[:, column], 1)
            np.testing.assert_allclose(slope * values + offset, places[:, column], atol=1e-3)
            assert slope > 0 or column == 1
        else:
            np.testing.assert_allclose(places[:, column], places[0, column], atol=1e-3)


@pytest.fixture
def findings(evidence: dict[str, Any]) -> Findings:
    return Findings.of_evidence(evidence)


def test_the_gate_plot_has_every_gain_its_interval_and_what_is_allowed(findings: Findings) -> None:
    drawn = Drawing(figures.gate_intervals(findings.rungs, 0.03))
    gains = drawn.marks("gains")
    assert_drawn(gains, [-8.0, 1.0], [0, 1])
    ends = np.concatenate(drawn.paths("intervals"))
    (allowed,) = drawn.paths("allowed")
    x = [-8.0, 1.0, -11.0, -5.0, -1.2, 3.1, -3.0]
    assert_drawn(np.array([*gains, *ends, allowed[0]])[:, [0, 0]], x, x)
    assert {"Copied", "ReLoRA"} <= set(drawn.texts())


def test_a_gain_is_to_the_right_whatever_the_direction_of_the_metric(evidence: dict[str, Any]) -> None:
    for rung, score in zip(evidence["rungs"], (1.1, 0.7), strict=True):
        rung |= {"metric": "TokenLoss", "score": score, "interval": {"lower": 0.9 - score - 0.1, "upper": 1.0 - score}}
    drawn = Drawing(figures.gate_intervals(Findings.of_evidence(evidence).rungs, 0.05))
    assert_drawn(drawn.marks("gains"), [-0.2, 0.2], [0, 1])
    assert "gain over the reference, nats per token" in drawn.texts()


def test_the_search_plot_has_every_trial_and_marks_the_infeasible_and_the_start(findings: Findings) -> None:
    drawn = Drawing(figures.search_surface(findings.searches[0], 1))
    feasible, infeasible, start = (drawn.marks(name) for name in ("feasible", "infeasible", "start"))
    assert (len(feasible), len(infeasible), len(start)) == (3, 1, 1)
    places = np.concatenate([feasible, infeasible, start])
    assert_drawn(places, [1.0, 0.0, 1.2, 1.0, 1.2], [0.0, 0.0, 0.25, -0.5, 0.25])
    assert {"1", "2", "3", "4", "0.3", "40"} <= set(drawn.texts())
    assert not [text for text in drawn.texts() if "$" in text]


def test_trials_of_other_losses_have_other_colours(findings: Findings) -> None:
    drawn = Drawing(figures.search_surface(findings.searches[0], 1))
    used = drawn._group("feasible").iter(f"{_SVG}use")
    fills = [re.search(r"fill: (#\w+)", e.attrib["style"]) for e in used]
    assert len({found[1] for found in fills if found}) == 3


def test_the_learning_plot_has_every_step_and_every_checkpoint(findings: Findings) -> None:
    (learning,) = findings.learnings
    drawn = Drawing(figures.learning_curves(learning, 0.72, 1))
    (losses,), (score,), (kept,) = (drawn.paths(name) for name in ("train-loss", "score", "retention"))
    assert_drawn(losses, list(range(1, 9)), learning.train_losses)
    assert_drawn(score, [0, 4, 8], [0.85, 0.89, 0.92])
    assert_drawn(kept, [0, 8], [0.8, 0.85])
    assert len(drawn.marks("score")) == 3
    (target,), (floor,) = drawn.paths("target"), drawn.paths("floor")
    assert_drawn(np.array([*score, target[0]])[:, [1, 1]] * [-1, 1], [0.85, 0.89, 0.92, 0.9], [0.85, 0.89, 0.92, 0.9])
    assert_drawn(np.array([*kept, floor[0]])[:, [1, 1]] * [-1, 1], [0.8, 0.85, 0.72], [0.8, 0.85, 0.72])


def test_the_energy_plot_has_the_spectrum_of_every_module_and_the_target(extraction: dict[str, Any]) -> None:
    modules = ExtractReport.model_validate(extraction).modules
    drawn = Drawing(figures.energy_spectra({name: module.spectrum for name, module in modules.items()}, 0.95))
    for kind in ("self_attn.q_proj", "mlp.up_proj"):
        corners = [drawn.paths(f"spectrum-model.layers.{layer}.{kind}")[0] for layer in (0, 1, 2)]
        shares = [[0.0, *modules[f"model.layers.{layer}.{kind}"].spectrum] for layer in (0, 1, 2)]
        (target,) = drawn.paths(f"target-{kind}")
        heights = [*(share for row in shares for share in row), 0.95]
        assert_drawn(np.array([*np.concatenate(corners), target[0]])[:, [1, 1]] * [-1, 1], heights, heights)
        assert_drawn(corners[0], [0, 1, 2, 3, 4], shares[0])
        assert kind in drawn.texts()


def test_a_training_without_retention_has_no_place_for_it(evidence: dict[str, Any]) -> None:
    for seen in evidence["relora"]["curve"]:
        seen["retention"] = None
    (learning,) = Findings.of_evidence(evidence).learnings
    drawn = Drawing(figures.learning_curves(learning, None, 1))
    assert_drawn(drawn.paths("score")[0], [0, 4, 8], [0.85, 0.89, 0.92])
    assert "retention" not in drawn.texts()


def test_the_lessons_have_the_losses_of_every_task_and_what_is_remembered_of_it() -> None:
    lessons = [Lesson("a", (0.9, 0.5, 0.25), (0.75,)), Lesson("$b$", (0.75, 0.5), (0.5, 1.0))]
    drawn = Drawing(figures.lesson_curves(lessons))
    for place, lesson in enumerate(lessons, 1):
        (losses,) = drawn.paths(f"loss-{place}")
        assert_drawn(losses, range(1, len(lesson.losses) + 1), lesson.losses)
    remembered = np.concatenate([drawn.marks("accuracy-1"), drawn.marks("accuracy-2")])
    assert_drawn(remembered, [1, 2, 2], [0.75, 0.5, 1.0])
    assert {"a", "$b$", "tasks learned"} <= set(drawn.texts())


def test_the_drift_plot_has_the_norm_of_every_module_by_layer() -> None:
    norms = {f"model.layers.{layer}.{kind}": 0.1 * layer + at for layer in (10, 2) for at, kind in enumerate("ab")}
    drawn = Drawing(figures.relative_norms(norms))
    both = np.concatenate([drawn.marks(f"norm-{kind}") for kind in "ab"])
    assert_drawn(both, [2, 10, 2, 10], [0.2, 1.0, 1.2, 2.0])
    assert {"a", "b", "layer"} <= set(drawn.texts())


def test_a_search_of_one_loss_or_without_feasible_points_is_drawn(evidence: dict[str, Any]) -> None:
    for entry in evidence["relora"]["trials"]:
        entry["loss"], entry["retention"] = 0.5, 0.1
    evidence["relora"]["start"] = {}
    search = Findings.of_evidence(evidence).searches[0]
    drawn = Drawing(figures.search_surface(search, 1))
    assert len(drawn.marks("infeasible")) == 4
    assert len(drawn.marks("feasible")) == 0
