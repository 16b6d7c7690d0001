"""The decoder: one forward pass over a ragged batch, whatever mixture of prompts, continuations and adapters.

In: ``Batch``. Out: logits of the rows that sample. Linears are fused (qkv, gate-up); each is followed by the LoRA
backend, which adds what the adapters contribute to their rows. Where ranks share the model, their parts of o and down
are summed with the adapters' parts in them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from readapt_runtime.engine.core import Batch
from readapt_runtime.model.backends import Backends
from readapt_runtime.model.config import Linear
from readapt_runtime.model.exchange import Alone, Exchange
from readapt_runtime.model.weights import DecoderWeights, LayerWeights


class Decoder:
    """A transformer of one of the families in ``family``, or a rank's share; all tensors on one device in one dtype."""

    def __init__(self, weights: DecoderWeights, backends: Backends, exchange: Exchange | None = None) -> None:
        self._weights = weights
        self._exchange = exchange or Alone()
        self._ops, self._attention, self._lora = backends.ops, backends.attention, backends.lora

    @torch.inference_mode()
    def forward(self, batch: Batch) -> torch.Tensor:
        """See ``engine.Model``."""
        self._attention.plan(batch)
        self._lora.plan(batch)
        hidden = F.embedding(batch.token_ids, self._weights.embedding)  # [tokens, hidden]
        delta = None
        for index, layer in enumerate(self._weights.layers):
            x = self._ops.add_norm(hidden, delta, layer.input_norm)
            mixed = self._attention.run(index, self._linear(index, layer, Linear.QKV, x), layer.qk_norm)
            delta = self._exchange.sum(self._linear(index, layer, Linear.O, mixed))
            x = self._ops.add_norm(hidden, delta, layer.post_attention_norm)
            inner = self._ops.silu_mul(self._linear(index, layer, Linear.GATE_UP, x))
            delta = self._exchange.sum(self._linear(index, layer, Linear.DOWN, inner))
        last = self._ops.add_norm(hidden, delta, self._weights.norm)[batch.sampled]  # logits for sampled rows only
        return self._exchange.join(self._weights.lm_head(last))

    def greedy(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``engine.Model``."""
        return self._ops.greedy(logits)

    def _linear(self, index: int, layer: LayerWeights, linear: Linear, x: torch.Tensor) -> torch.Tensor:
        y = layer.linears[linear](x)
        self._lora.run(index, linear, x, y)
        return y
