"""Freezing, reduced ranks, distillation and folding against dense float64."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from readapt_runtime.continual.blocks import Learned, fold
from readapt_runtime.continual.freezing import Reduction, Share, freeze, share
from readapt_runtime.lora_format import LoraAdapter, LoraModule
from readapt_runtime.lowrank import LowRank

quick = settings(max_examples=25, deadline=None)
SHAPES = {"q": (7, 5), "down": (4, 9)}


def factors(seed: int, rank: int, size: float = 1.0, scale: float = 2.0) -> LoraAdapter:
    draw = torch.Generator().manual_seed(seed)
    modules = {}
    for name, (out, into) in SHAPES.items():
        a, b = torch.randn(rank, into, generator=draw), size * torch.randn(out, rank, generator=draw)
        modules[name] = LoraModule(name, a, b, scale)
    return LoraAdapter(modules)


def dense(adapter: LoraAdapter) -> Mapping[str, Tensor]:
    return {n: m.scale * (m.b.double() @ m.a.double()) for n, m in adapter.modules.items()}


def total(*adapters: LoraAdapter) -> Mapping[str, Tensor]:
    return {name: sum((dense(a)[name] for a in adapters), torch.zeros(shape)) for name, shape in SHAPES.items()}


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5 * float(value.norm()))


def freeze_all(*adapters: LoraAdapter) -> Learned:
    learned = Learned()
    for i, adapter in enumerate(adapters):
        learned = freeze(learned, adapter, f"t{i}", Reduction()).learned
    return learned


@quick
@given(
    st.lists(
        st.tuples(st.integers(0, 999), st.integers(1, 4), st.sampled_from([1e-3, 1.0, 30.0])), min_size=1, max_size=4
    )
)
def test_the_sum_of_the_blocks_is_that_of_the_tasks(tasks: list[tuple[int, int, float]]) -> None:
    adapters = [factors(seed, rank, size) for seed, rank, size in tasks]
    learned = freeze_all(*adapters)
    assert_same(dense(learned.adapter), total(*adapters))
    for block in learned.blocks:
        for direction in block.directions.values():
            product = direction.left.double() @ direction.right.double()
            assert float(product.norm()) == pytest.approx(1.0, rel=1e-5)


def test_the_magnitude_is_the_norm_of_the_product_not_the_product_of_the_norms() -> None:
    adapter = factors(1, 3)
    (block,) = freeze_all(adapter).blocks
    for name, product in dense(adapter).items():
        assert block.magnitudes[name] == pytest.approx(float(product.norm()), rel=1e-6)
        module = adapter.modules[name]
        assert block.magnitudes[name] < 0.95 * float(module.scale * module.a.norm() * module.b.norm())


def test_a_module_that_did_not_learn_adds_nothing() -> None:
    adapter = factors(1, 2)
    silent = LoraModule("q", adapter.modules["q"].a, torch.zeros(7, 2), 2.0)
    frozen = freeze(Learned(), LoraAdapter({**adapter.modules, "q": silent}), "t", Reduction(threshold=1.0))
    assert set(frozen.learned.blocks[0].directions) | set(frozen.dropped) == {"down"}


@quick
@given(st.integers(0, 999), st.integers(1, 4), st.floats(0, 2))
def test_the_share_is_the_dense_least_squares_solution(seed: int, count: int, outside: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    earlier = [LowRank(torch.randn(6, 2, generator=draw), torch.randn(2, 8, generator=draw)) for _ in range(count)]
    mixed = [torch.randn(1, generator=draw).double() * (x.left @ x.right) for x in earlier]
    target = sum(mixed, torch.zeros(6, 8).double()) + outside * torch.randn(6, 8, generator=draw)
    u, s, vt = torch.linalg.svd(target)
    found = share(LowRank(u[:, :6] * s, vt[:6]), earlier)

    columns = torch.stack([(x.left.double() @ x.right.double()).flatten() for x in earlier], dim=1)
    solution = torch.linalg.lstsq(columns, target.flatten()[:, None], driver="gelsd").solution[:, 0]
    distance = float((target.flatten() - columns @ solution).norm() / target.norm())
    assert found.residual == pytest.approx(distance, abs=1e-6)
    torch.testing.assert_close(torch.tensor(found.coefficients).double(), solution, rtol=1e-5, atol=1e-6)


def test_the_first_direction_of_a_module_is_all_its_own() -> None:
    assert share(LowRank(torch.ones(3, 1), torch.ones(1, 2)), []) == Share((), 1.0)


def test_dependent_earlier_directions_are_no_obstacle() -> None:
    x = LowRank(torch.randn(6, 2), torch.randn(2, 8))
    found = share(LowRank(3 * x.left, x.right), [x, x])
    assert found.residual < 1e-6
    assert sum(found.coefficients) == pytest.approx(3.0)


def test_a_direction_within_the_span_is_dropped_and_its_share_kept() -> None:
    first, second = factors(1, 2), factors(2, 3)
    mixture = LoraAdapter({n: mixed(m, second.modules[n]) for n, m in first.modules.items()})
    frozen = freeze(freeze_all(first, second), mixture, "third", Reduction(threshold=1e-3))
    assert frozen.dropped == ("q", "down")
    assert frozen.learned.blocks[-1].directions == {}
    assert_same(dense(frozen.learned.adapter), total(first, second, mixture))


def mixed(x: LoraModule, y: LoraModule) -> LoraModule:
    """Half of x minus twice y."""
    return LoraModule(x.name, torch.cat([x.a, y.a]), torch.cat([0.5 * x.b, -2 * y.b], dim=1), x.scale)


def test_the_threshold_is_relative_to_the_size_of_the_direction() -> None:
    """A tiny direction of its own is kept, a huge one within the span is not."""
    first = factors(1, 2)
    learned = freeze_all(first)
    tiny = freeze(learned, factors(3, 2, size=1e-6), "tiny", Reduction(threshold=0.1))
    huge = LoraAdapter({n: LoraModule(n, m.a, 1e4 * m.b, m.scale) for n, m in first.modules.items()})
    assert tiny.dropped == ()
    assert min(tiny.residuals.values()) > 0.3
    assert freeze(learned, huge, "huge", Reduction(threshold=0.1)).dropped == ("q", "down")


@pytest.mark.parametrize("share_kept", [0.5, 0.9, 0.999, 1.0])
def test_reduced_ranks_keep_the_share_of_energy_with_the_least_rank(share_kept: float) -> None:
    adapter = factors(5, 4)
    frozen = freeze(Learned(), adapter, "t", Reduction(energy=share_kept))
    for name, product in dense(adapter).items():
        squares = torch.linalg.svdvals(product).square()
        kept = (squares.cumsum(0) / squares.sum())[:4]
        wanted = int((kept < share_kept * (1 - 1e-12)).sum()) + 1
        direction = frozen.learned.blocks[0].directions[name]
        assert direction.rank == min(wanted, 4)
        error = product - frozen.learned.blocks[0].magnitudes[name] * (direction.left @ direction.right).double()
        assert float(error.norm() ** 2 / squares.sum()) == pytest.approx(1 - float(kept[direction.rank - 1]), abs=1e-5)
    lost = sum(float(squares.sum()) for squares in (torch.linalg.svdvals(p).square() for p in dense(adapter).values()))
    rest = sum(float((p - dense(frozen.learned.adapter)[n]).norm() ** 2) for n, p in dense(adapter).items())
    assert frozen.kept_energy == pytest.approx(1 - rest / lost, abs=1e-5)


def test_a_fold_that_has_room_is_exact_and_another_says_what_it_costs() -> None:
    adapters = [factors(seed, 2) for seed in (1, 2)]
    learned = freeze_all(*adapters)
    wide, narrow = fold(learned, 4), fold(learned, 3)
    assert (wide.adapter.rank, wide.discarded) == (4, 0.0)
    assert_same(dense(wide.adapter), total(*adapters))
    assert narrow.adapter.rank == 3
    lost = size = 0.0
    for name, product in total(*adapters).items():
        u, s, vt = torch.linalg.svd(product.double())
        best = (u[:, :3] * s[:3]) @ vt[:3]
        torch.testing.assert_close(dense(narrow.adapter)[name], best, rtol=1e-4, atol=1e-5 * float(s[0]))
        lost, size = lost + float(s[3:].square().sum()), size + float(s.square().sum())
    assert narrow.discarded == pytest.approx(lost / size, rel=1e-4)
