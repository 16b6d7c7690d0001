"""The ablations on a tiny base move: gradients against differences, folds by group, and nothing is computed twice."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ablations import SEARCH, SIBLINGS, WAYS, Ablation, Row, grade, ground_of, table
from intervals import share_with_interval
from start_gradients import Scalars
from starts import GRID, TRIALS, Ground, fold_groups
from tunings import OfFactors, ToZero

from readapt_runtime.adapt.data import read_splits
from readapt_runtime.adapt.factors import SideFactors
from readapt_runtime.adapt.item import Move
from readapt_runtime.adapt.retention import retention
from readapt_runtime.adapt.search import COPY, Point, SideBySide, fold
from readapt_runtime.lora_format import base_shapes, read_adapter
from readapt_runtime.progress import JsonLog
from readapt_runtime.store import Store
from readapt_testing.tiny_models import TinyModels

pytestmark = pytest.mark.usefixtures("single_thread")
QUIET = JsonLog(io.StringIO())


@pytest.fixture(scope="module")
def ground(models: TinyModels, move: Move, tmp_path_factory: pytest.TempPathFactory) -> Ground:
    adapter = read_adapter(models.adapter, base_shapes(models.v1))
    splits = read_splits(models.data("adapter", "train").parent)
    splits = replace(splits, train=splits.train[:64], search=splits.search[:24], stopping=splits.stopping[:48])
    return ground_of(move, adapter, splits, 0, Store(tmp_path_factory.mktemp("ablations") / "store"), QUIET)


def test_gradients_are_those_of_what_the_search_measures(ground: Ground) -> None:
    """Against central differences of the trials' own losses and retention, in fp32."""
    meter, drift = ground.meter(), ground.move.drift
    scalars = Scalars(ground.move.new, ground.adapter, drift, groups=1)
    losses, downwards = scalars.answer_gradient(meter.rows)
    text, upwards = scalars.retention_gradient(meter.part)
    side = SideBySide(ground.adapter, drift, ground.move.new)

    def measured(point: Point) -> tuple[float, float]:
        side.move_to(point)
        found = meter.measure(point, side.factors)
        assert found.retention is not None
        return found.loss, found.retention

    loss, kept = measured(COPY)
    assert sum(losses) / len(losses) == pytest.approx(loss, rel=1e-4)
    of_text = retention(meter.part, text)
    assert of_text is not None
    assert of_text.value == pytest.approx(kept, rel=1e-3)
    step = 0.02
    for column, (before, after) in enumerate(
        ((Point(1 - step, 0), Point(1 + step, 0)), (Point(1, -step), Point(1, step)))
    ):
        below, above = measured(before), measured(after)
        assert float(downwards[0, column]) == pytest.approx((above[0] - below[0]) / (2 * step), rel=0.05, abs=0.01)
        assert float(upwards[0, column]) == pytest.approx((above[1] - below[1]) / (2 * step), rel=0.05, abs=0.02)


def test_groups_are_folded_each_at_its_own_point(ground: Ground) -> None:
    """The layers of a group are what ``fold`` makes of the whole model at that point."""
    points = (Point(1.2, -0.3), Point(0.8, 0.2))
    folded = fold_groups(ground.adapter, ground.move.drift, points)
    whole = [fold(ground.adapter, ground.move.drift, point) for point in points]
    assert list(folded.modules) == list(ground.adapter.modules)
    layers = sorted({int(name.split(".")[2]) for name in folded.modules})
    for name, module in folded.modules.items():
        group = int(int(name.split(".")[2]) >= len(layers) / 2)
        assert torch.equal(module.a, whole[group].modules[name].a)
        assert torch.equal(module.b, whole[group].modules[name].b)


def test_the_grid_costs_as_many_trials_as_the_search() -> None:
    assert len(set(GRID)) == TRIALS
    assert GRID[0] == COPY


def test_every_way_is_measured_once_and_no_start_gives_the_update_away(ground: Ground, tmp_path: Path) -> None:
    made: list[int] = []

    def grounds(seed: int) -> Ground:
        made.append(seed)
        return replace(ground, seed=seed)

    ways = ["Copy, no search", SEARCH, SIBLINGS, "gradient, 3 pairs by depth", "… pulled to zero"]
    assert set(ways) < set(WAYS)
    rows = Ablation(tmp_path, range(2), grounds).rows(ways)
    again = Ablation(tmp_path, range(2), lambda seed: pytest.fail("nothing is left to do")).rows(ways)

    assert rows == again
    assert len(made) == len(rows)
    copied = next(row for row in rows if row.way == "Copy, no search")
    assert (copied.accuracy, copied.loss) == pytest.approx(grade(ground.move.new, ground, ground.adapter))
    searched = {row.seed: row for row in rows if row.way == SEARCH}
    assert searched[0].trials == TRIALS
    assert searched[0].loss < copied.loss
    (point,) = next(row for row in rows if row.way == SIBLINGS).points
    assert point in [*searched[1].points, [COPY.alpha, COPY.beta]]
    by_way = {line.split(" | ")[0].removeprefix("| "): line for line in table(rows).splitlines()[4:]}
    assert list(by_way) == [way for way in WAYS if way in ways]


def test_the_readings_of_l2_are_zero_where_they_should_be_and_count_what_they_say() -> None:
    draw = torch.Generator().manual_seed(0)
    start = {
        "m": SideFactors(torch.randn(3, 8, generator=draw), torch.randn(5, 3, generator=draw), torch.full((3,), 2.0))
    }
    twice = {"m": SideFactors(start["m"].a, 2 * start["m"].b, start["m"].scale)}
    assert float(OfFactors(start)(start)) == 0.0
    a, b = (float(side.square().sum()) for side in (start["m"].a, start["m"].b))
    assert float(OfFactors(start)(twice)) == pytest.approx(b / (a + b), rel=1e-5)
    assert float(ToZero(start)(start)) == pytest.approx(1.0, rel=1e-4)
    assert float(ToZero(start)(twice)) == pytest.approx(4.0, rel=1e-4)


def test_recovered_is_gains_over_losses() -> None:
    """Copy lost 10, 4 and 1 points; of these 15 the way won 8, 4 and 0 back: 80 %."""
    found = share_with_interval([8.0, 4.0, 0.0], [10.0, 4.0, 1.0])
    assert found.startswith("80 % ± ")
    assert share_with_interval([8.0], [10.0]) == "80 %"
    assert share_with_interval([1.0, 2.0], [-1.0, 0.5]) == "–"


def test_the_table_tells_what_a_start_recovers_and_keeps() -> None:
    def found(way: str, accuracy: float, retention: float) -> Row:
        return Row(way, 0, accuracy, 0.5, retention, True, 1.0, 1, [(1.0, 0.0)], of_old=0.9, of_copy=0.8)

    text = table([found("Copy, no search", 0.8, 0.8), found(SEARCH, 0.89, 0.76)])
    assert text.startswith("Old pair: 90.0 %.")
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {SEARCH} "))
    assert [cell.strip() for cell in line.strip("|").split("|")][2:8] == [
        "89.0",
        "+9.0",
        "90 %",
        "0.500",
        "0.760",
        "0.950",
    ]
