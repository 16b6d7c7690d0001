"""Promises of the overlap of a drift with an adapter, against dense matrices in fp64."""

from __future__ import annotations

import math

import pytest
import torch

from readapt_runtime.drift.overlap import overlap
from readapt_runtime.lora_format import LoraAdapter, LoraModule
from readapt_runtime.lowrank import LowRank

INTO, OUT, RANK = 24, 16, 3


def _factors(rank: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(OUT, rank, generator=generator, dtype=torch.float64)
    return left, torch.randn(rank, INTO, generator=generator, dtype=torch.float64)


def _adapter(*modules: LoraModule) -> LoraAdapter:
    return LoraAdapter({m.name: m for m in modules})


def _module(name: str = "q", seed: int = 1) -> LoraModule:
    b, a = _factors(RANK, seed)
    return LoraModule(name, a, b, 2.0)


def test_overlap_equals_dense_projections() -> None:
    module, (left, right) = _module(), _factors(5, 2)
    found = overlap(_adapter(module), {"q": LowRank(left, right)})

    drift, update = left @ right, 2.0 * module.b @ module.a
    rows = torch.linalg.svd(module.a, full_matrices=False).Vh
    columns = torch.linalg.svd(module.b, full_matrices=False).U
    whole = float(drift.norm() ** 2)
    assert found.size == pytest.approx(float(drift.norm() / update.norm()))
    assert found.read == pytest.approx(float((drift @ rows.T @ rows).norm() ** 2) / whole)
    assert found.written == pytest.approx(float((columns @ columns.T @ drift).norm() ** 2) / whole)
    assert found.along == pytest.approx(float((drift * update).sum() / drift.norm() / update.norm()))
    assert found.modules["q"].read_by_chance == pytest.approx(RANK / INTO)


def test_drift_along_the_adapter_is_found_whole_and_its_opposite_negative() -> None:
    module = _module()
    same = overlap(_adapter(module), {"q": LowRank(module.b, module.a)})
    assert (same.read, same.written, same.along) == pytest.approx((1.0, 1.0, 1.0))
    opposite = overlap(_adapter(module), {"q": LowRank(-module.b, module.a)})
    assert opposite.along == pytest.approx(-1.0)


def test_modules_count_by_the_size_of_their_drift() -> None:
    """A module that moved ten times as far has a hundred times the say."""
    first, second = _module("q", 1), _module("v", 3)
    left, right = _factors(4, 5)
    along = LowRank(first.b / (first.b @ first.a).norm(), first.a)
    across = LowRank(10 * left / (left @ right).norm(), right)
    found = overlap(_adapter(first, second), {"q": along, "v": across})
    expected = (found.modules["q"].read + 100 * found.modules["v"].read) / 101
    assert found.read == pytest.approx(expected)


def test_modules_without_drift_make_the_move_smaller() -> None:
    moved, still = _module("q", 1), _module("v", 3)
    drift = {"q": LowRank(moved.b, moved.a)}
    alone = overlap(_adapter(moved), drift)
    both = overlap(_adapter(moved, still), drift)
    assert alone.size == pytest.approx(0.5)
    update = 2.0 * math.hypot(float((moved.b @ moved.a).norm()), float((still.b @ still.a).norm()))
    assert both.size == pytest.approx(float((moved.b @ moved.a).norm()) / update)


def test_a_base_that_did_not_move_and_an_adapter_of_zero_have_sizes() -> None:
    module = _module()
    assert overlap(_adapter(module), {}).size == 0.0
    zero = LoraModule("q", module.a, torch.zeros_like(module.b), 2.0)
    found = overlap(_adapter(zero), {"q": LowRank(module.b, module.a)})
    assert found.size == math.inf
    assert found.along == 0.0
    assert found.written == 0.0
