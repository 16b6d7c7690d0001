"""The yardsticks of the extraction benchmark: the error of a written adapter, and the best one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from extraction import Cost, _values
from extraction_by_torch import main as extract_with_torch
from extraction_errors import excess, optima
from safetensors.torch import load_file, save_file

NAME = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Singular values 10 to 1, tied in twos, in one module; another did not change; an embedding did."""
    u, v = (torch.linalg.qr(torch.randn(30, 20, generator=torch.Generator().manual_seed(s)))[0] for s in (0, 1))
    values = torch.arange(10, 0, -0.5).ceil()
    for version, size in (("base", 0.0), ("finetuned", 1.0)):
        (tmp_path / version).mkdir()
        tensors = {f"{NAME}.weight": size * (u * values) @ v.T, "model.layers.0.mlp.up_proj.weight": torch.ones(3, 3)}
        save_file(
            {**tensors, "model.embed_tokens.weight": torch.full((4, 4), size)}, tmp_path / version / "model.safetensors"
        )
    return tmp_path / "base", tmp_path / "finetuned"


def test_the_best_is_what_the_left_out_singular_values_hold(pair: tuple[Path, Path]) -> None:
    best = optima(*pair, 16)
    assert best == {NAME: pytest.approx((2**2 + 2**2 + 1 + 1) ** 0.5, rel=1e-5)}


def test_errors_are_those_of_the_factors_with_their_scale(pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    extract_with_torch(*pair, out, rank=16, iterations=4)
    best = optima(*pair, 16)
    assert excess(*pair, out, best) == {NAME: pytest.approx(1, rel=1e-4)}

    config = json.loads((out / "adapter_config.json").read_text())
    delta = load_file(pair[1] / "model.safetensors")[f"{NAME}.weight"]
    (out / "adapter_config.json").write_text(json.dumps({**config, "alpha_pattern": {NAME: 0}}))
    nothing = pytest.approx(float(delta.norm()) / best[NAME], rel=1e-4)
    assert excess(*pair, out, best) == {NAME: nothing}
    save_file({"other": torch.ones(1)}, out / "adapter_model.safetensors")
    assert excess(*pair, out, best) == {NAME: nothing}


def test_work_is_the_command_without_its_imports_run_by_run() -> None:
    values = _values([(Cost(5.0, 4.0, 100.0), Cost(2.0, 1.5, 50.0)), (Cost(7.0, 6.0, 90.0), Cost(3.0, 1.0, 50.0))])
    assert (values["work_wall_s"], values["work_cpu_s"]) == ([3.0, 4.0], [2.5, 5.0])
