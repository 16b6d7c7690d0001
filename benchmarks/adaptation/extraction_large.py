"""One decoder layer of the shapes of Llama-3.1-8B, and what the whole pair would take."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

LARGE = "Llama-3.1-8B, predicted"
HIDDEN, INNER, KEYS, HEADS, LAYERS, VOCABULARY = 4096, 14336, 1024, 32, 32, 128256
_SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KEYS, HIDDEN),
    "self_attn.v_proj": (KEYS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
_ROWS = VOCABULARY // LAYERS
"""Of embedding and head each: with one layer's share of them a layer is a thirty-second of the model in every way."""


def write_layer(root: Path) -> tuple[Path, Path]:
    """(base, finetuned), bfloat16; singular values of the differences fall as k^-1/2, over a floor of noise."""
    config = {"model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": 1}
    config |= {"num_attention_heads": HEADS, "num_key_value_heads": KEYS * HEADS // HIDDEN, "vocab_size": _ROWS}
    shapes = {f"model.layers.0.{name}.weight": shape for name, shape in _SHAPES.items()}
    shapes |= dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), (_ROWS, HIDDEN))
    for version in ("base", "finetuned"):
        tensors = {}
        for seed, (name, shape) in enumerate(shapes.items()):
            generator = torch.Generator().manual_seed(seed)
            weight = 0.02 * torch.randn(shape, generator=generator)
            if version == "finetuned":
                weight += _change(shape, generator)
            tensors[name] = weight.bfloat16()
        (root / version).mkdir(parents=True)
        save_file(tensors, root / version / "model.safetensors")
        (root / version / "config.json").write_text(json.dumps(config))
    return root / "base", root / "finetuned"


def _change(shape: tuple[int, int], generator: torch.Generator, directions: int = 512) -> torch.Tensor:
    left = torch.randn(shape[0], directions, generator=generator)
    right = torch.randn(directions, shape[1], generator=generator)
    values = torch.arange(1, directions + 1) ** -0.5
    return 2e-4 * (left * values) @ right + 1e-4 * torch.randn(shape, generator=generator)


def predict(wall_s: float, cpu_s: float, peak_mib: float) -> dict[str, float]:
    """From what one layer with its share of embedding and head took, without imports."""
    parameters = sum(out * into for out, into in _SHAPES.values()) + 2 * _ROWS * HIDDEN
    return {
        "measured s of one layer": wall_s,
        "measured CPU-s of one layer": cpu_s,
        "million parameters a CPU-second": parameters / cpu_s / 1e6,
        "s of the whole": wall_s * LAYERS,
        "CPU-s of the whole": cpu_s * LAYERS,
        "largest resident MiB": peak_mib,
    }
