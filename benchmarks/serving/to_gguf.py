"""A Llama folder as one bf16 GGUF file for llama.cpp, without a vocabulary: the benchmark sends token ids.

In: a folder with config.json and model.safetensors. Out: the file. llama.cpp rotates neighbouring elements of a head
where transformers rotates its halves, so the rows of q and k change places.
"""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf.quants import quantize
from numpy.typing import NDArray
from safetensors import safe_open

_Weights = NDArray[np.float32]


def write(base: Path, out: Path) -> Path:
    """Raises ValueError for a base that is no Llama."""
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    if config["model_type"] != "llama":
        raise ValueError(f"{base}: a {config['model_type']} cannot be written, only a llama")
    writer = gguf.GGUFWriter(out, "llama")
    _describe(writer, config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    with safe_open(base / "model.safetensors", framework="pt") as tensors:
        for key in tensors.keys():  # noqa: SIM118  (not a mapping)
            weight = tensors.get_tensor(key).to(torch.float32).numpy()
            count = next((n for part, n in heads.items() if part in key), None)
            name = names.get_name(key, try_suffixes=(".weight",))
            _add(writer, name, _neighbours(weight, count) if count else weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def _describe(writer: gguf.GGUFWriter, config: dict[str, object]) -> None:
    hidden, heads = int(str(config["hidden_size"])), int(str(config["num_attention_heads"]))
    rope = config.get("rope_parameters") or config
    writer.add_context_length(int(str(config["max_position_embeddings"])))
    writer.add_embedding_length(hidden)
    writer.add_block_count(int(str(config["num_hidden_layers"])))
    writer.add_feed_forward_length(int(str(config["intermediate_size"])))
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(str(config["num_key_value_heads"])))
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_rope_freq_base(float(rope["rope_theta"]))  # type: ignore[index]
    writer.add_layer_norm_rms_eps(float(str(config["rms_norm_eps"])))
    writer.add_vocab_size(int(str(config["vocab_size"])))
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)


def _add(writer: gguf.GGUFWriter, name: str, weight: _Weights) -> None:
    """Vectors stay float32, as llama.cpp wants its norms."""
    kind = gguf.GGMLQuantizationType.F32 if weight.ndim == 1 else gguf.GGMLQuantizationType.BF16
    writer.add_tensor(name, quantize(weight, kind), raw_dtype=kind)


def _neighbours(weight: _Weights, heads: int) -> _Weights:
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)
