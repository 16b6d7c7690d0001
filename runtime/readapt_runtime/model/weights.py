"""The weights of a base model, copied tensor by tensor into fused tensors of the serving dtype.

In: a Hugging Face folder with ``*.safetensors`` (one file, or shards with an index). Out: ``DecoderWeights``. No
second copy of the model exists at any time: each tensor is read, checked and goes into its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from readapt_runtime.model.config import DecoderConfig, Linear
from readapt_runtime.safe_tensors import BadWeights, Checkpoint, TensorInfo


@dataclass(frozen=True, slots=True)
class LayerWeights:
    linears: Mapping[Linear, torch.Tensor]  # [out, in] each
    input_norm: torch.Tensor  # [hidden]
    post_attention_norm: torch.Tensor  # [hidden]


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    embedding: torch.Tensor  # [vocab, hidden]
    layers: tuple[LayerWeights, ...]
    norm: torch.Tensor  # [hidden]
    lm_head: torch.Tensor  # [vocab, hidden]; the embedding itself when tied


def load_weights(folder: Path, config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> DecoderWeights:
    """Raises BadWeights for missing files and tensors, wrong shapes, and values that are not finite."""
    with Checkpoint(folder) as checkpoint:
        reader = _Reader(checkpoint, checkpoint.infos, config, dtype, device)
        embedding = reader.tensor("model.embed_tokens.weight", config.vocab_size, config.hidden_size)
        layers = tuple(reader.layer(i) for i in range(config.num_layers))
        norm = reader.tensor("model.norm.weight", config.hidden_size)
        head = embedding
        if not config.tied_embeddings:
            head = reader.tensor("lm_head.weight", config.vocab_size, config.hidden_size)
    return DecoderWeights(embedding, layers, norm, head)


@dataclass(frozen=True, slots=True)
class _Reader:
    """Puts named tensors of a checkpoint into tensors of the serving dtype and device."""

    checkpoint: Checkpoint
    infos: Mapping[str, TensorInfo]
    config: DecoderConfig
    dtype: torch.dtype
    device: torch.device

    def layer(self, layer: int) -> LayerWeights:
        norms = [self.config.module_name(layer, n) for n in ("input_layernorm", "post_attention_layernorm")]
        return LayerWeights(
            linears={linear: self._fused(layer, linear) for linear in self.config.linears},
            input_norm=self.tensor(f"{norms[0]}.weight", self.config.hidden_size),
            post_attention_norm=self.tensor(f"{norms[1]}.weight", self.config.hidden_size),
        )

    def tensor(self, name: str, *shape: int) -> torch.Tensor:
        out = torch.empty(shape, dtype=self.dtype, device=self.device)
        self._copy(name, out)
        return out

    def _fused(self, layer: int, linear: Linear) -> torch.Tensor:
        """``[out, in]`` with the rows of each slice in their place."""
        fused = self.config.linears[linear]
        out = torch.empty(fused.out_features, fused.in_features, dtype=self.dtype, device=self.device)
        for part in fused.slices:
            name = self.config.module_name(layer, part.module)
            self._copy(f"{name}.weight", out[part.start : part.start + part.size])
        return out

    def _copy(self, name: str, out: torch.Tensor) -> None:
        info = self.infos.get(name)
        if info is None:
            raise BadWeights(f"{self.checkpoint.folder.name}: no tensor {name}")
        if info.shape != tuple(out.shape):
            raise BadWeights(f"{name} has the shape {list(info.shape)}, the config wants {list(out.shape)}")
        out.copy_(self.checkpoint.read(name))
