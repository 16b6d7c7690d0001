"""What llama.cpp is given is the model that the others get."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import to_gguf
import torch
from gguf.quants import dequantize
from safetensors.torch import load_file

from readapt_testing.tiny_llama import write_base

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.layers.1.mlp.down_proj.weight": "blk.1.ffn_down.weight",
    "model.layers.2.self_attn.v_proj.weight": "blk.2.attn_v.weight",
    "model.norm.weight": "output_norm.weight",
}


def test_every_weight_is_in_the_file_and_rotated_rows_lie_where_llama_cpp_wants_them(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    reader = gguf.GGUFReader(to_gguf.write(base, tmp_path / "base.gguf"))
    found = {t.name: dequantize(t.data, t.tensor_type) for t in reader.tensors}
    config = json.loads((base / "config.json").read_text())
    weights = load_file(base / "model.safetensors")
    assert len(found) == len(weights)
    for name, theirs in NAMES.items():
        np.testing.assert_allclose(found[theirs], weights[name].to(torch.float32).numpy(), rtol=2**-8)

    size = config["hidden_size"] // config["num_attention_heads"]
    q, k = (weights[f"model.layers.0.self_attn.{part}_proj.weight"].to(torch.float32).numpy() for part in "qk")
    for ours, theirs, heads in (
        (q, found["blk.0.attn_q.weight"], config["num_attention_heads"]),
        (k, found["blk.0.attn_k.weight"], config["num_key_value_heads"]),
    ):
        for head in range(heads):
            for pair in range(size // 2):
                rows = theirs[head * size + 2 * pair : head * size + 2 * pair + 2]
                expected = ours[[head * size + pair, head * size + size // 2 + pair]]
                np.testing.assert_allclose(rows, expected, rtol=2**-8)


def test_another_family_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    with pytest.raises(ValueError, match="a qwen3 cannot be written"):
        to_gguf.write(tmp_path, tmp_path / "out.gguf")
