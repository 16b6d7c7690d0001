"""The weights of a base model, read from the files straight into fused tensors of the serving dtype and device.

In: a Hugging Face folder with ``*.safetensors`` (one file, or shards with an index), and which share of it is wanted.
Out: ``DecoderWeights``. No second copy exists at any time, not even of one tensor: values of another dtype or device,
and those of a share, pass through one small block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F

from readapt_runtime.model.attention import QkNorm
from readapt_runtime.model.config import DecoderConfig, Linear
from readapt_runtime.model.ops import LinearOp, Ops
from readapt_runtime.model.shard import COLUMN_PARALLEL, Cut, Shard
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
    folder: Path, config: DecoderConfig, dtype: torch.dtype, device: torch.device, ops: Ops, shard: Shard | None = None
) -> DecoderWeights:
    """Each weight of a product is handed to ``ops`` as soon as it is complete, and let go of.

    ``config`` is that of the whole model; of a ``shard`` only its share is kept. The embedding is whole on every rank,
    the output head is shared out by rows. Raises BadWeights unless the tensors are those of the config: names, shapes,
    finite values (of what is read), and no others.

    A tensor that the config does not mention (a bias, say) would change the answers if it were left out in silence.
    """
    with Checkpoint(folder) as checkpoint:
        reader = _Reader(checkpoint, checkpoint.infos, config, shard or Shard(config), dtype, device, ops)
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
    shard: Shard
    dtype: torch.dtype
    device: torch.device
    ops: Ops
    read: set[str] = field(default_factory=set)

    def layer(self, layer: int) -> LayerWeights:
        hidden = self.config.hidden_size
        name = self.config.module_name
        return LayerWeights(
            linears={linear: self._linear(layer, linear) for linear in self.config.linears},
            input_norm=self.tensor(name(layer, "input_layernorm.weight"), hidden),
            post_attention_norm=self.tensor(name(layer, "post_attention_layernorm.weight"), hidden),
            qk_norm=self._qk_norm(layer) if self.config.qk_norm else None,
        )

    def _qk_norm(self, layer: int) -> QkNorm:
        names = [self.config.module_name(layer, f"self_attn.{side}_norm.weight") for side in "qk"]
        q, k = (self.tensor(name, self.config.head_dim) for name in names)
        return QkNorm(q, k)

    def _linear(self, layer: int, linear: Linear) -> LinearOp:
        return self.ops.linear(self._fused(layer, linear), self._fused_bias(layer, linear))

    def head(self, embedding: torch.Tensor) -> torch.Tensor:
        """``[vocab, hidden]``; as transformers does, a tied head that is stored with other values is not tied."""
        cut = self.shard.vocab
        tied = _take(embedding, cut) if self.config.tied_embeddings else None
        if tied is not None and _HEAD not in self.infos:
            return tied
        head = self._empty(cut.size, self.config.hidden_size)
        self._read(_HEAD, head, cut, Cut.all_of(self.config.hidden_size))
        return tied if tied is not None and torch.equal(head, tied) else head

    def tensor(self, name: str, *shape: int) -> torch.Tensor:
        out = self._empty(*shape)
        self._read(name, out, *map(Cut.all_of, shape))
        return out

    def _empty(self, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def require_all_read(self) -> None:
        """Raises BadWeights for a tensor that has no place in this decoder."""
        for name in self.infos:
            if name not in self.read and not name.endswith(_IGNORED):
                raise BadWeights(f"{self.checkpoint.folder.name}: the config has no place for the tensor {name}")

    def _fused(self, layer: int, linear: Linear) -> torch.Tensor:
        """``[out, in]`` with the rows of each slice in their place."""
        fused = self.shard.config.linears[linear]
        out = self._empty(fused.out_features, fused.in_features)
        for part in fused.slices:
            name = self.config.module_name(layer, part.module)
            place = out[part.start : part.start + part.size]
            self._read(f"{name}.weight", place, self.shard.rows(part.module), self.shard.columns(part.module))
        return out

    def _fused_bias(self, layer: int, linear: Linear) -> torch.Tensor | None:
        """``[out]``; where the ranks' outputs are summed, one of them adds it."""
        fused = self.shard.config.linears[linear]
        if not fused.bias:
            return None
        out = self._empty(fused.out_features)
        for part in fused.slices:
            name = self.config.module_name(layer, part.module)
            self._read(f"{name}.bias", out[part.start : part.start + part.size], self.shard.rows(part.module))
        return out if linear in COLUMN_PARALLEL or self.shard.rank == 0 else None

    def _read(self, name: str, out: torch.Tensor, *cuts: Cut) -> None:
        """The share of a tensor that the cuts of its axes say; padding becomes zero."""
        info = self.infos.get(name)
        if info is None:
            raise BadWeights(f"{self.checkpoint.folder.name}: no tensor {name}")
        wanted = [cut.total for cut in cuts]
        if list(info.shape) != wanted:
            raise BadWeights(f"{name} has the shape {list(info.shape)}, the config wants {wanted}")
        if all(cut.is_whole for cut in cuts):
            self.checkpoint.read_into(name, out)
        else:
            rows, columns = cuts if len(cuts) == 2 else (*cuts, Cut.all_of(1))
            place = out.view(rows.size, columns.size)
            place[rows.count :] = 0
            place[:, columns.count :] = 0
            self.checkpoint.read_window(name, place[: rows.count, : columns.count], rows.start, columns.start)
        self.read.add(name)


def _take(matrix: torch.Tensor, cut: Cut) -> torch.Tensor:
    """The rows of a share: a view where nothing is padded, the matrix itself where nothing is cut."""
    if cut.is_whole:
        return matrix
    own = matrix[cut.start : cut.start + cut.count]
    return own if cut.count == cut.size else F.pad(own, (0, 0, 0, cut.size - cut.count))
