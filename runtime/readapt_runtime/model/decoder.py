"""The decoder: one forward pass over a ragged batch, whatever mixture of prompts, continuations and adapters.

In: ``Batch``. Out: float32 logits of the rows that sample. Linears are fused (qkv, gate-up); each is followed by the
LoRA backend, which adds what the adapters contribute to their rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from readapt_runtime.engine.core import Batch
from readapt_runtime.model.attention import AttentionBackend
from readapt_runtime.model.config import DecoderConfig, Linear
from readapt_runtime.model.lora import LoraBackend
from readapt_runtime.model.weights import DecoderWeights, LayerWeights


class Decoder:
    """A transformer of one of the families in ``family``; all tensors on one device in one dtype."""

    def __init__(
        self,
        config: DecoderConfig,
        weights: DecoderWeights,
        attention: AttentionBackend,
        lora: LoraBackend,
        max_model_len: int,
    ) -> None:
        """Raises UnsupportedModel where a sliding window would matter within ``max_model_len``."""
        config.require_length(max_model_len)
        self._config = config
        self._weights = weights
        self._attention = attention
        self._lora = lora
        self._cos, self._sin = _rotary_tables(config, max_model_len, weights.embedding)

    @torch.inference_mode()
    def forward(self, batch: Batch) -> torch.Tensor:
        """See ``engine.Model``."""
        self._attention.plan(batch)
        self._lora.plan(batch)
        cos, sin = self._cos[batch.positions], self._sin[batch.positions]  # [tokens, 1, dim]
        hidden = F.embedding(batch.token_ids, self._weights.embedding)  # [tokens, hidden]
        for index, layer in enumerate(self._weights.layers):
            hidden = hidden + self._attend(index, layer, self._norm(hidden, layer.input_norm), cos, sin)
            hidden = hidden + self._feed_forward(index, layer, self._norm(hidden, layer.post_attention_norm))
        last = self._norm(hidden[batch.sampled], self._weights.norm)  # logits for sampled rows only
        return F.linear(last, self._weights.lm_head).float()

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, weight.shape, weight, self._config.rms_norm_eps)

    def _linear(self, index: int, layer: LayerWeights, linear: Linear, x: torch.Tensor) -> torch.Tensor:
        y = F.linear(x, layer.linears[linear], layer.biases.get(linear))
        self._lora.run(index, linear, x, y)
        return y

    def _attend(
        self, index: int, layer: LayerWeights, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        c = self._config
        qkv = self._linear(index, layer, Linear.QKV, x).view(x.shape[0], -1, c.head_dim)
        q, kv = qkv[:, : c.num_heads], qkv[:, c.num_heads :]
        k, v = kv[:, : c.num_kv_heads], kv[:, c.num_kv_heads :]
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = self._norm(q, layer.q_norm), self._norm(k, layer.k_norm)
        if c.rotary_layers[index]:
            q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        mixed = self._attention.run(index, q, k, v)
        return self._linear(index, layer, Linear.O, mixed)

    def _feed_forward(self, index: int, layer: LayerWeights, x: torch.Tensor) -> torch.Tensor:
        gate, up = self._linear(index, layer, Linear.GATE_UP, x).chunk(2, dim=-1)
        return self._linear(index, layer, Linear.DOWN, F.silu(gate) * up)


def _rotary_tables(config: DecoderConfig, length: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin ``[length, 1, head_dim]``, computed in float32, in the model's dtype."""
    inv_freq = torch.tensor(config.rotary.inv_freq, dtype=torch.float32)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), inv_freq)
    angles = torch.cat((angles, angles), dim=-1).unsqueeze(1)
    scaling = config.rotary.attention_scaling
    return (angles.cos() * scaling).to(like), (angles.sin() * scaling).to(like)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates pairs (i, i + dim/2): x ``[tokens, heads, dim]``."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
