"""Ways to spoil a folder with a model, for tests of what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Damage = Callable[[Path], object]


def tensors(edit: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    """``edit`` changes the tensors by name."""

    def damage(folder: Path) -> None:
        found = load_file(folder / "model.safetensors")
        edit(found)
        save_file(found, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def configured(name: str, **options: Any) -> Damage:
    """Sets options of a JSON file."""

    def damage(folder: Path) -> None:
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | options))

    return damage
