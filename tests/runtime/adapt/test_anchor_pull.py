"""The anchor against its dense definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from readapt_runtime.adapt.anchor import Anchor
from readapt_runtime.adapt.factors import SideFactors


def sides(seed: int, rank: int = 3, zero: bool = False) -> dict[str, SideFactors]:
    draw = torch.Generator().manual_seed(seed)
    return {
        name: SideFactors(
            torch.randn(rank, 12, generator=draw).requires_grad_(),
            (torch.randn(9, rank, generator=draw) * (0.0 if zero else 1.0)).requires_grad_(),
            torch.full((rank,), 2.0),
        )
        for name in ("first", "second")
    }


def dense(start: dict[str, SideFactors], now: dict[str, SideFactors]) -> Tensor:
    def product(side: SideFactors) -> Tensor:
        return 2.0 * side.b.double() @ side.a.double()

    moved = sum(((product(now[n]) - product(start[n]).detach()) ** 2).sum() for n in start)
    size = sum((product(start[n]).detach() ** 2).sum() for n in start)
    return torch.as_tensor(moved / size)


def gradients(loss: Tensor, factors: dict[str, SideFactors]) -> list[Tensor]:
    leaves = [t for side in factors.values() for t in (side.a, side.b)]
    return list(torch.autograd.grad(loss, leaves))


def test_value_and_gradient_are_those_of_the_dense_definition() -> None:
    start, now = sides(1), sides(2)
    loss = Anchor(start)(now)
    expected = dense(start, now)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-6)
    for ours, theirs in zip(gradients(loss, now), gradients(expected, now), strict=True):
        torch.testing.assert_close(ours, theirs.float(), rtol=1e-3, atol=1e-5)


def test_it_does_not_depend_on_how_the_product_is_split() -> None:
    start = sides(1)
    regauged = {n: SideFactors(s.a.detach() * 8, s.b.detach() / 8, s.scale) for n, s in start.items()}
    assert float(Anchor(start)(regauged)) == pytest.approx(0.0, abs=1e-6)


def test_a_start_of_zero_pulls_nowhere() -> None:
    assert float(Anchor(sides(1, zero=True))(sides(2)).detach()) == 0.0
