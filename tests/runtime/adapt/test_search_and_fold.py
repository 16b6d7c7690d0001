"""Candidates α·ΔW + β·D: folding against dense algebra, and where the search goes."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from readapt_runtime.adapt.errors import Diverged
from readapt_runtime.adapt.search import (
    COPY,
    SEEDS,
    Measured,
    Point,
    SideBySide,
    best_points,
    choose_start,
    fold,
    kept_energy,
    search,
)
from readapt_runtime.lora_format import LoraAdapter, LoraModule
from readapt_runtime.lowrank import LowRank

NAMES = ("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj")


def random_tensor(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def adapter() -> LoraAdapter:
    return LoraAdapter(
        {n: LoraModule(n, random_tensor(i, 4, 20), random_tensor(i + 9, 30, 4), 2.0) for i, n in enumerate(NAMES)}
    )


def drift() -> dict[str, LowRank]:
    return {n: LowRank(random_tensor(i + 20, 30, 6), random_tensor(i + 40, 6, 20)) for i, n in enumerate(NAMES)}


def dense(lora: LoraAdapter, name: str) -> Tensor:
    module = lora.modules[name]
    return module.scale * module.b.double() @ module.a.double()


@pytest.mark.parametrize("point", [Point(1.2, -0.4), Point(0.3, 0.9), Point(0.0, -1.0)], ids=str)
def test_folding_is_the_best_approximation_of_the_dense_sum(point: Point) -> None:
    folded = fold(adapter(), drift(), point)
    kept = total = 0.0
    for name, moved in drift().items():
        whole = point.alpha * dense(adapter(), name) + point.beta * moved.left @ moved.right
        u, s, vt = torch.linalg.svd(whole)
        best = u[:, :4] * s[:4] @ vt[:4]
        torch.testing.assert_close(dense(folded, name), best, rtol=1e-5, atol=1e-5)
        assert folded.modules[name].rank == 4
        kept, total = kept + float(s[:4].square().sum()), total + float(s.square().sum())
    assert kept_energy(adapter(), drift(), point) == pytest.approx(kept / total, rel=1e-6)


def test_side_by_side_is_the_dense_sum_at_every_point() -> None:
    base: Any = SimpleNamespace(dtype=torch.float64, device=torch.device("cpu"))
    side = SideBySide(adapter(), drift(), base)
    x = random_tensor(77, 3, 20)
    for point in (COPY, Point(0.0, 0.0), Point(0.7, -0.6)):
        side.move_to(point)
        for name, moved in drift().items():
            whole = point.alpha * dense(adapter(), name) + point.beta * moved.left @ moved.right
            torch.testing.assert_close(side.factors[name](x), x @ whole.T, rtol=1e-5, atol=1e-5)


def test_copy_is_never_refactored_and_alpha_alone_keeps_the_directions() -> None:
    own = adapter()
    assert fold(own, drift(), COPY) is own
    scaled = fold(own, drift(), Point(0.5, 0.0))
    for name in NAMES:
        assert torch.equal(scaled.modules[name].a, own.modules[name].a)
        torch.testing.assert_close(dense(scaled, name), 0.5 * dense(own, name))


def bowl(point: Point, least: float | None = None) -> Measured:
    """A loss with its minimum at (1.1, -0.8), and a retention that falls as β leaves 0."""
    loss = (point.alpha - 1.1) ** 2 + (point.beta + 0.8) ** 2
    return Measured(point, (loss + 0.1, loss - 0.1), 1 + 0.5 * min(point.beta, 0.0), least)


def test_the_search_tries_copy_and_zero_first_and_is_reproducible() -> None:
    first, second = (search(bowl, trials=8, seed=7) for _ in range(2))
    assert [m.point for m in first][: len(SEEDS)] == list(SEEDS)
    assert SEEDS[:2] == (Point(1.0, 0.0), Point(0.0, 0.0))
    assert [m.point for m in first] == [m.point for m in second]
    assert len(first) == 8
    assert min(m.loss for m in first) < min(m.loss for m in first[:4]) - 0.05


def test_the_search_stays_where_the_update_survives() -> None:
    trials = search(lambda p: bowl(p, least=0.85), trials=10, seed=3)
    best = best_points(trials, 1)[0]
    assert 1 + 0.5 * min(best.beta, 0.0) >= 0.85
    assert best.beta < -0.15


def test_a_loss_that_is_not_finite_ends_the_search() -> None:
    with pytest.raises(Diverged, match=r"α=1\.000, β=0\.000"):
        search(lambda p: Measured(p, (math.nan,), None, None), trials=4, seed=0)


def spread(point: Point, mean: float, **other: float | None) -> Measured:
    losses = tuple(mean + 0.1 * math.sin(7 * i + 900 * mean) for i in range(50))
    return Measured(point, losses, other.get("retention"), other.get("least"))


def test_copy_wins_within_one_standard_error() -> None:
    copy = spread(COPY, 0.500)
    assert choose_start(copy, [spread(Point(1.1, -0.3), 0.495)]) is copy
    better = spread(Point(1.1, -0.3), 0.300)
    assert choose_start(copy, [better, spread(Point(1.0, -0.9), 0.4)]) is better
    assert choose_start(copy, []) is copy


def test_a_start_below_the_retention_floor_is_never_chosen() -> None:
    copy = spread(COPY, 0.5, retention=0.8, least=0.72)
    reverted = spread(Point(1.1, -1.0), 0.1, retention=0.3, least=0.72)
    assert choose_start(copy, [reverted]) is copy
