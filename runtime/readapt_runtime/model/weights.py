"""The weights of a base model, read from the files straight into fused tensors of the serving dtype and device.

In: a Hugging Face folder with ``*.safetensors`` (one file, or shards with an index). Out: ``DecoderWeights``. No
second copy exists at any time, not even of one tensor: values of another dtype or device pass through one small block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from readapt_runtime.model.attention import QkNorm
from readapt_runtime.model.config import DecoderConfig, FusedLinear, Linear
from readapt_runtime.model.ops import LinearOp, Ops
from readapt_runtime.safe_tensors import BadWeights, Checkpoint, TensorInfo

_EMBEDDING = "model.embed_tokens.weight"
_HEAD = "lm_head.weight"
_IGNORED = "rotary_emb.inv_freq"
"""Some old checkpoints carry it; it follows from the config."""


@dataclass(frozen=True, slots=True)
class LayerWeights:
    linears: Mapping[Linear, LinearOp]
    input_norm: torch.Tensor  # [hidden]
    post_attention_norm: torch.Tensor  # [hidden]
    qk_norm: QkNorm | None


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    embedding: torch.Tensor  # [vocab, hidden]
    layers: tuple[LayerWeights, ...]
    norm: torch.Tensor  # [hidden]
    lm_head: LinearOp  # of the embedding when tied


def load_weights(
    folder: Path, config: DecoderConfig, dtype: torch.dtype, device: torch.device, ops: Ops
) -> DecoderWeights:
    """Each weight of a product is handed to ``ops`` as soon as it is complete, and let go of.

    Raises BadWeights unless the tensors are those of the config: names, shapes, finite values, and no others.

    A tensor that the config does not mention (a bias, say) would change the answers if it were left out in silence.
    """
    with Checkpoint(folder) as checkpoint:
        reader = _Reader(checkpoint, checkpoint.infos, config, dtype, device, ops)
        embedding = reader.tensor(_EMBEDDING, config.vocab_size, config.hidden_size)
        weights = DecoderWeights(
            embedding=embedding,
            layers=tuple(reader.layer(i) for i in range(config.num_layers)),
            norm=reader.tensor("model.norm.weight", config.hidden_size),
            lm_head=ops.linear(reader.head(embedding), None),
        )
        reader.require_all_read()
    return weights


@dataclass(frozen=True, slots=True)
class _Reader:
    """Puts named tensors of a checkpoint into tensors of the serving dtype and device."""

    checkpoint: Checkpoint
    infos: Mapping[str, TensorInfo]
    config: DecoderConfig
    dtype: torch.dtype
    device: torch.device
    ops: Ops
    read: set[str] = field(default_factory=set)

    def layer(self, layer: int) -> LayerWeights:
        hidden, linears = self.config.hidden_size, self.config.linears
        name = self.config.module_name
        return LayerWeights(
            linears={linear: self._linear(layer, fused) for linear, fused in linears.items()},
            input_norm=self.tensor(name(layer, "input_layernorm.weight"), hidden),
            post_attention_norm=self.tensor(name(layer, "post_attention_layernorm.weight"), hidden),
            qk_norm=self._qk_norm(layer) if self.config.qk_norm else None,
        )

    def _qk_norm(self, layer: int) -> QkNorm:
        names = [self.config.module_name(layer, f"self_attn.{side}_norm.weight") for side in "qk"]
        q, k = (self.tensor(name, self.config.head_dim) for name in names)
        return QkNorm(q, k)

    def _linear(self, layer: int, fused: FusedLinear) -> LinearOp:
        return self.ops.linear(self._fused(layer, fused), self._fused_bias(layer, fused) if fused.bias else None)

    def head(self, embedding: torch.Tensor) -> torch.Tensor:
        """``[vocab, hidden]``; as transformers does, a tied head that is stored with other values is not tied."""
        if self.config.tied_embeddings and _HEAD not in self.infos:
            return embedding
        head = self.tensor(_HEAD, self.config.vocab_size, self.config.hidden_size)
        return embedding if self.config.tied_embeddings and torch.equal(head, embedding) else head

    def tensor(self, name: str, *shape: int) -> torch.Tensor:
        out = torch.empty(shape, dtype=self.dtype, device=self.device)
        self._read(name, out)
        return out

    def require_all_read(self) -> None:
        """Raises BadWeights for a tensor that has no place in this decoder."""
        for name in self.infos:
            if name not in self.read and not name.endswith(_IGNORED):
                raise BadWeights(f"{self.checkpoint.folder.name}: the config has no place for the tensor {name}")

    def _fused(self, layer: int, fused: FusedLinear) -> torch.Tensor:
        """``[out, in]`` with the rows of each slice in their place."""
        out = torch.empty(fused.out_features, fused.in_features, dtype=self.dtype, device=self.device)
        for part in fused.slices:
            name = self.config.module_name(layer, part.module)
            self._read(f"{name}.weight", out[part.start : part.start + part.size])
        return out

    def _fused_bias(self, layer: int, fused: FusedLinear) -> torch.Tensor:
        """``[out]``."""
        out = torch.empty(fused.out_features, dtype=self.dtype, device=self.device)
        for part in fused.slices:
            name = self.config.module_name(layer, part.module)
            self._read(f"{name}.bias", out[part.start : part.start + part.size])
        return out

    def _read(self, name: str, out: torch.Tensor) -> None:
        info = self.infos.get(name)
        if info is None:
            raise BadWeights(f"{self.checkpoint.folder.name}: no tensor {name}")
        if info.shape != tuple(out.shape):
            raise BadWeights(f"{name} has the shape {list(info.shape)}, the config wants {list(out.shape)}")
        self.checkpoint.read_into(name, out)
        self.read.add(name)
