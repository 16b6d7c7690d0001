"""Extraction against dense float64 and PEFT."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from readapt_runtime.difference import DifferentModels
from readapt_runtime.extract import ExtractReport, RankPolicy, extract
from readapt_runtime.extract.extraction import NothingToExtract
from readapt_runtime.progress import JsonLog

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
Edit = Callable[[dict[str, torch.Tensor]], object]
Make = Callable[[Edit], Path]
Change = Callable[..., Edit]


def run(base: Path, finetuned: Path, out: Path, policy: RankPolicy) -> tuple[ExtractReport, list[dict[str, object]]]:
    stream = io.StringIO()
    extraction = extract(base, finetuned, out, policy, JsonLog(stream))
    assert json.loads((out / "report.json").read_text()) == extraction.report.to_wire()
    return extraction.report, [json.loads(line) for line in stream.getvalue().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value.double() for name, value in load_file(folder / "model.safetensors").items()}


def test_a_low_rank_change_is_reproduced_by_peft(
    base: Path, edited: Make, low_rank_change: Change, tmp_path: Path
) -> None:
    finetuned = edited(low_rank_change(seed=1, rank=5))
    report, _ = run(base, finetuned, tmp_path / "out", RankPolicy(fixed=8))

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, str(tmp_path / "out")).merge_and_unload().state_dict()
    for name, expected in load_file(finetuned / "model.safetensors").items():
        torch.testing.assert_close(merged[name], expected, rtol=1e-4, atol=1e-5)
    assert report.energy == pytest.approx(1, abs=1e-6)
    assert report.relative_error < 1e-3
    assert report.sidecar == {}
    assert report.warnings == ()
    assert not (tmp_path / "out" / "sidecar.safetensors").exists()


@pytest.mark.parametrize("stretch", [0.0, 0.05], ids=["folds", "scales rows of the base"])
def test_a_merged_dora_adapter_folds_as_far_as_it_leaves_the_rows_of_the_base(
    base: Path, tmp_path: Path, stretch: float
) -> None:
    """W' = m (W + BA) / ‖W + BA‖: with m = ‖W + BA‖ a LoRA, else (m / ‖W + BA‖ - 1) W has full rank."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, use_dora=True, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    with torch.no_grad():
        for module in (m for m in model.modules() if hasattr(m, "lora_magnitude_vector")):
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            b.normal_(std=0.1)
            norms = (module.base_layer.weight + 2 * b @ a).norm(dim=1)
            module.lora_magnitude_vector["default"].weight.copy_(norms * (1 + stretch * torch.randn_like(norms)))
    finetuned = tmp_path / "merged"
    model.merge_and_unload().save_pretrained(finetuned)
    shutil.copy(base / "tokenizer.json", finetuned)

    report, _ = run(base, finetuned, tmp_path / "out", RankPolicy(fixed=8))
    if stretch:
        assert report.relative_error > 0.05
        assert report.energy == pytest.approx(1 - report.relative_error**2, abs=1e-3)
    else:
        assert report.relative_error < 1e-3


def test_energy_and_errors_are_those_of_the_dense_difference(
    base: Path, edited: Make, low_rank_change: Change, linear: list[str], tmp_path: Path
) -> None:
    """A full-rank change: energy is reported against the true norm, not against the computed spectrum."""
    finetuned = edited(low_rank_change(seed=2, rank=64))
    report, _ = run(base, finetuned, tmp_path / "out", RankPolicy(fixed=8))

    old, new = weights(base), weights(finetuned)
    adapter = load_file(tmp_path / "out" / "adapter_model.safetensors")
    total = 0.0
    for name in linear:
        delta = new[f"{name}.weight"] - old[f"{name}.weight"]
        values = torch.linalg.svdvals(delta)
        energy = float(values[:8].square().sum() / values.square().sum())
        a, b = (adapter[f"base_model.model.{name}.lora_{side}.weight"].double() for side in "AB")
        assert report.modules[name].energy == pytest.approx(energy, abs=1e-3)
        assert report.modules[name].norm == pytest.approx(float(delta.norm()), rel=1e-6)
        error = float((delta - b @ a).norm() / delta.norm())
        assert report.modules[name].relative_error == pytest.approx(error, abs=1e-5)
        assert error == pytest.approx((1 - energy) ** 0.5, abs=2e-3)
        torch.testing.assert_close(a.norm(), b.norm(), rtol=1e-4, atol=0)
        total += float(delta.square().sum())
    assert report.norm == pytest.approx(total**0.5, rel=1e-6)


@pytest.mark.parametrize("target", [0.3, 0.9, 0.999999])
def test_each_module_gets_the_smallest_serving_rank_that_reaches_the_energy(
    base: Path, edited: Make, low_rank_change: Change, linear: list[str], tmp_path: Path, target: float
) -> None:
    finetuned = edited(low_rank_change(seed=3, rank=20))
    report, _ = run(base, finetuned, tmp_path / "out", RankPolicy(energy=target))
    old, new = weights(base), weights(finetuned)
    for name in linear:
        squares = torch.linalg.svdvals(new[f"{name}.weight"] - old[f"{name}.weight"]).square()
        captured = squares.cumsum(0) / squares.sum()
        needed = int((captured < target * (1 - 1e-6)).sum()) + 1
        expected = min(next(rank for rank in (8, 16, 32, 64) if rank >= needed), squares.numel())
        assert report.modules[name].rank == expected
        assert not report.modules[name].capped


def test_a_maximum_rank_that_stops_an_energy_target_is_said(
    base: Path, edited: Make, low_rank_change: Change, tmp_path: Path
) -> None:
    report, log = run(
        base, edited(low_rank_change(seed=4, rank=64)), tmp_path / "out", RankPolicy(energy=0.99, max_rank=12)
    )
    assert report.rank == 12
    assert all(module.capped for module in report.modules.values())
    assert "the maximum rank keeps 14 of 14 modules short of what was asked for" in report.warnings[0]
    assert any(line["level"] == "warning" and line["message"] == report.warnings[0] for line in log)


def test_what_cannot_be_lora_goes_to_the_sidecar_with_its_share(
    base: Path, edited: Make, low_rank_change: Change, tmp_path: Path
) -> None:
    change = low_rank_change(seed=5, rank=4)

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        change(tensors)
        tensors["model.norm.weight"] += 0.5
        tensors["model.embed_tokens.weight"][7] += 1.0

    finetuned = edited(edit)
    report, log = run(base, finetuned, tmp_path / "out", RankPolicy(fixed=8, targets=("q_proj", "v_proj")))

    old, new = weights(base), weights(finetuned)
    moved = {
        name: float((new[name] - old[name]).square().sum()) for name in new if not torch.equal(new[name], old[name])
    }
    extracted = {f"{name}.weight" for name in report.modules}
    assert extracted == {name for name in moved if "q_proj" in name or "v_proj" in name}
    assert set(report.sidecar) == moved.keys() - extracted
    for name, entry in report.sidecar.items():
        assert entry.share == pytest.approx(moved[name] / sum(moved.values()), rel=1e-5)
    assert report.sidecar["model.norm.weight"].reason == "norm"
    assert report.sidecar["model.embed_tokens.weight"].reason == "embedding"
    assert report.sidecar_share + sum(moved[name] for name in extracted) / sum(moved.values()) == pytest.approx(1)
    beside = load_file(tmp_path / "out" / "sidecar.safetensors")
    assert set(beside) == set(report.sidecar)
    for name, value in beside.items():
        assert torch.equal(value, load_file(finetuned / "model.safetensors")[name])
    assert any("not in the adapter" in str(line.get("message")) for line in log if line["level"] == "warning")


def test_a_grown_vocabulary_is_kept_beside_the_adapter(
    base: Path, edited: Make, low_rank_change: Change, tmp_path: Path
) -> None:
    change = low_rank_change(seed=6, rank=4)

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        change(tensors)
        grown = torch.cat([tensors["model.embed_tokens.weight"], torch.full((4, 64), 2.0)])
        tensors["model.embed_tokens.weight"] = grown

    report, _ = run(base, edited(edit), tmp_path / "out", RankPolicy(fixed=8))
    assert report.sidecar["model.embed_tokens.weight"].norm == pytest.approx((4 * 64 * 4) ** 0.5)
    assert load_file(tmp_path / "out" / "sidecar.safetensors")["model.embed_tokens.weight"].shape == (264, 64)


def test_unchanged_modules_are_left_out(base: Path, edited: Make, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj"

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{name}.weight"][3, 5] += 1.0

    report, _ = run(base, edited(edit), tmp_path / "out", RankPolicy(fixed=8))
    assert list(report.modules) == [name]
    assert report.unchanged == 13
    assert report.modules[name].relative_error < 1e-3
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["target_modules"] == [name]


def test_equal_inputs_give_equal_adapters(base: Path, edited: Make, low_rank_change: Change, tmp_path: Path) -> None:
    finetuned = edited(low_rank_change(seed=7, rank=30))
    for out in ("one", "two"):
        run(base, finetuned, tmp_path / out, RankPolicy(fixed=8))
    for name in ("adapter_model.safetensors", "adapter_config.json", "report.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_equal_checkpoints_have_nothing_to_extract(base: Path, tmp_path: Path) -> None:
    with pytest.raises(NothingToExtract, match="none of 14"):
        run(base, base, tmp_path / "out", RankPolicy(fixed=8))


def test_unknown_target_modules_are_named(base: Path, tmp_path: Path) -> None:
    with pytest.raises(NothingToExtract, match="c_attn"):
        run(base, base, tmp_path / "out", RankPolicy(fixed=8, targets=("c_attn",)))


def test_another_model_is_refused_by_the_name_of_what_differs(base: Path, edited: Make, tmp_path: Path) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.self_attn.k_proj.weight"] = torch.ones(64, 64)

    with pytest.raises(DifferentModels, match=r"model\.layers\.1\.self_attn\.k_proj\.weight: shape \[64, 64\]"):
        run(base, edited(edit), tmp_path / "out", RankPolicy(fixed=8))
