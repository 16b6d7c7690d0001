"""Drift against dense float64."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from readapt_runtime.difference import DifferentModels, frobenius
from readapt_runtime.drift import DRIFT_REPORT, DriftReport, measure, read_drift
from readapt_runtime.progress import JsonLog
from readapt_runtime.safe_tensors import BadWeights
from readapt_testing.tiny_llama import write_base

Edit = Callable[[dict[str, torch.Tensor]], object]
Make = Callable[[Edit], Path]
Change = Callable[..., Edit]
LOG = JsonLog(io.StringIO())


def report_of(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / DRIFT_REPORT).read_text())
    return report


def test_factors_and_norms_are_those_of_the_dense_difference(
    base: Path, edited: Make, low_rank_change: Change, linear: list[str], tmp_path: Path
) -> None:
    moved = edited(low_rank_change(seed=1, rank=50))
    summary = measure(base, moved, tmp_path / "drift", LOG, rank=12)

    old, new = (load_file(folder / "model.safetensors") for folder in (base, moved))
    report, factors = report_of(tmp_path / "drift"), read_drift(tmp_path / "drift")
    assert list(factors) == sorted(linear)
    total = before = kept = 0.0
    for name in linear:
        weight, delta = old[f"{name}.weight"].double(), (new[f"{name}.weight"] - old[f"{name}.weight"]).double()
        best = torch.linalg.svdvals(delta)[:12].square().sum()
        left = (delta - factors[name].left.double() @ factors[name].right.double()).square().sum()
        assert float(left) == pytest.approx(float(delta.square().sum() - best), rel=1e-3)
        assert report["modules"][name]["norm"] == pytest.approx(float(delta.norm()), rel=1e-6)
        total, before, kept = (
            total + float(delta.square().sum()),
            before + float(weight.square().sum()),
            kept + float(best),
        )
    assert summary.relative_norm == pytest.approx((total / before) ** 0.5, rel=1e-6)
    assert summary.captured_energy == pytest.approx(kept / total, abs=1e-3)
    assert (summary.moved, len(summary.modules)) == (14, 14)


def test_every_module_has_its_leading_singular_values(
    base: Path, edited: Make, low_rank_change: Change, linear: list[str], tmp_path: Path
) -> None:
    moved = edited(low_rank_change(seed=4, rank=50))
    found = measure(base, moved, tmp_path / "drift", LOG, rank=12)
    old, new = (load_file(folder / "model.safetensors") for folder in (base, moved))
    relative = {}
    for name in linear:
        before, after = (tensors[f"{name}.weight"].double() for tensors in (old, new))
        values, module = torch.linalg.svdvals(after - before), found.modules[name]
        assert module.singular_values == pytest.approx(values[:12].tolist(), rel=1e-2)
        assert module.captured == pytest.approx(
            (values.square().cumsum(0) / values.square().sum())[:12].tolist(), abs=1e-3
        )
        assert module.captured[-1] == pytest.approx(module.captured_energy, rel=1e-4)
        relative[name] = float((after - before).norm() / before.norm())
    assert [name for name, _ in found.most_moved(3)] == sorted(relative, key=lambda name: -relative[name])[:3]
    assert [m.relative_norm for _, m in found.most_moved(3)] == pytest.approx(sorted(relative.values())[:-4:-1])


def test_a_drift_of_an_earlier_release_is_read(
    base: Path, edited: Make, low_rank_change: Change, tmp_path: Path
) -> None:
    """Its document has no singular values."""
    measure(base, edited(low_rank_change(seed=5, rank=2)), tmp_path / "drift", LOG)
    document = report_of(tmp_path / "drift")
    for module in document["modules"].values():
        del module["singularValues"]
    found = DriftReport.model_validate(document)
    assert found.moved == 14
    assert {module.captured for module in found.modules.values()} == {()}


def test_equal_versions_have_a_drift_of_nothing(base: Path, tmp_path: Path) -> None:
    summary = measure(base, base, tmp_path / "drift", LOG)
    assert (summary.relative_norm, summary.captured_energy, summary.moved) == (0.0, 1.0, 0)
    assert read_drift(tmp_path / "drift") == {}


def test_what_moved_beside_the_linear_modules_is_reported(base: Path, edited: Make, tmp_path: Path) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"] *= 1.5

    measure(base, edited(edit), tmp_path / "drift", LOG)
    assert report_of(tmp_path / "drift")["rest"] == {"model.norm.weight": pytest.approx(0.5)}


def test_equal_inputs_give_equal_bytes(base: Path, edited: Make, low_rank_change: Change, tmp_path: Path) -> None:
    moved = edited(low_rank_change(seed=2, rank=50))
    for out in ("one", "two"):
        measure(base, moved, tmp_path / out, LOG)
    for name in ("drift.safetensors", "drift.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_another_architecture_is_refused_by_the_field_that_differs(base: Path, tmp_path: Path) -> None:
    other = write_base(tmp_path / "other", layers=3)
    with pytest.raises(DifferentModels, match="num_hidden_layers is 2 and 3"):
        measure(base, other, tmp_path / "drift", LOG)


def test_a_drift_with_half_a_pair_is_refused(base: Path, edited: Make, low_rank_change: Change, tmp_path: Path) -> None:
    measure(base, edited(low_rank_change(seed=3, rank=2)), tmp_path / "drift", LOG)
    path = tmp_path / "drift" / "drift.safetensors"
    tensors = load_file(path)
    tensors.pop("model.layers.0.self_attn.q_proj.left")
    save_file(tensors, path)
    with pytest.raises(BadWeights, match="not a pair"):
        read_drift(tmp_path / "drift")


@pytest.mark.parametrize("shape", [(), (1,), (70_001,), (300, 500)], ids=str)
def test_norms_keep_the_digits_that_float32_sums_lose(shape: tuple[int, ...]) -> None:
    tensor = torch.full(shape, 0.1, dtype=torch.float32)
    expected = float(tensor.double().square().sum().sqrt())
    assert frobenius(tensor) == pytest.approx(expected, rel=1e-12)  # the order of additions may differ
