"""How far written adapters are from the best of their rank, without any code of ours."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file


def optima(base: Path, finetuned: Path, rank: int) -> dict[str, float]:
    """Module -> √Σσ² of all singular values beyond ``rank``, by LAPACK."""
    return {n: float(torch.linalg.svdvals(delta)[rank:].norm()) for n, delta in _differences(base, finetuned)}


def excess(base: Path, finetuned: Path, adapter: Path, best: Mapping[str, float]) -> dict[str, float]:
    """Module -> error of the adapter / the best one; a module that it lacks has the error of doing nothing."""
    factors = load_file(adapter / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text())
    found = {}
    for name, delta in _differences(base, finetuned):
        a, b = (factors.get(f"base_model.model.{name}.lora_{side}.weight") for side in "AB")
        if a is not None and b is not None:
            alpha = config.get("alpha_pattern", {}).get(name, config["lora_alpha"])
            delta = delta - alpha / a.shape[0] * (b.double() @ a.double())
        found[name] = float(delta.norm()) / best[name]
    return found


def _differences(base: Path, finetuned: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """(module, float64 difference) of the linear modules of the decoder layers that changed."""
    with safe_open(base / "model.safetensors", "pt") as old, safe_open(finetuned / "model.safetensors", "pt") as new:
        for name in sorted(name for name in set(old.keys()) if "_proj.weight" in name):
            delta = new.get_tensor(name).double() - old.get_tensor(name).double()
            if bool(delta.any()):
                yield name.removesuffix(".weight"), delta
