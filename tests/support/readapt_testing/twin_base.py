"""A base with its units in another order: it answers alike, and an adapter of the one means nothing to the other."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def shuffled_copy(source: Path, target: Path) -> Path:
    """Writes the twin of ``source`` to ``target``."""
    target.mkdir()
    for file in source.iterdir():
        if file.name != "model.safetensors":
            (target / file.name).write_bytes(file.read_bytes())
    tensors = load_file(source / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    orders = {kind: _order(kind, config) for kind in ("hidden", "q_proj", "k_proj", "gate_proj")}
    for name, tensor in tensors.items():
        axes = next((axes for part, axes in _AXES.items() if part in name), ("hidden",))
        for axis, kind in enumerate(axes):
            if kind:
                tensor = tensor.index_select(axis, orders[kind])
        tensors[name] = tensor.contiguous()
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


_AXES = {
    "embed_tokens": ("", "hidden"),
    "q_proj": ("q_proj", "hidden"),
    "k_proj": ("k_proj", "hidden"),
    "v_proj": ("k_proj", "hidden"),
    "o_proj": ("hidden", "q_proj"),
    "gate_proj": ("gate_proj", "hidden"),
    "up_proj": ("gate_proj", "hidden"),
    "down_proj": ("hidden", "gate_proj"),
}
"""Part of a tensor's name -> the order of each axis; norms have the hidden one."""


def _order(kind: str, config: dict[str, int]) -> torch.Tensor:
    """Hidden and inner units in any order; of the heads the two halves change places."""
    generator = torch.Generator().manual_seed(7)
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    if kind in heads:
        width = heads[kind] * config["hidden_size"] // config["num_attention_heads"]
        return torch.arange(width).roll(width // 2)
    return torch.randperm(config["intermediate_size" if kind == "gate_proj" else "hidden_size"], generator=generator)
