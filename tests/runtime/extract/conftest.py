from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from readapt_runtime.lora_format import linear_shapes
from readapt_testing.tiny_llama import write_base

Edit = Callable[[dict[str, torch.Tensor]], object]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("models") / "base", layers=2)


@pytest.fixture(scope="session")
def linear(base: Path) -> list[str]:
    return list(linear_shapes(json.loads((base / "config.json").read_text())))


@pytest.fixture
def edited(base: Path, tmp_path: Path) -> Callable[[Edit], Path]:
    """A copy of the base whose tensors were edited."""

    def make(edit: Edit) -> Path:
        folder = tmp_path / f"edited-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(base, folder)
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return make


@pytest.fixture(scope="session")
def low_rank_change() -> Callable[..., Edit]:
    """Makes edits that add a random change of a given rank to every linear module of the decoder layers."""

    def make(seed: int, rank: int, size: float = 0.05) -> Edit:
        def edit(tensors: dict[str, torch.Tensor]) -> None:
            generator = torch.Generator().manual_seed(seed)
            for name in sorted(n for n in tensors if "_proj" in n):
                left = torch.randn(tensors[name].shape[0], rank, generator=generator)
                right = torch.randn(rank, tensors[name].shape[1], generator=generator)
                tensors[name] += size * left @ right

        return edit

    return make
