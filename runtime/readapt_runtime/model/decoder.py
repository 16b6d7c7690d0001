"""The decoder: one forward pass over a ragged batch, whatever mixture of prompts, continuations and adapters.

In: ``Batch``. Out: logits of the rows that sample, and tokens picked from them. Linears are fused (qkv, gate-up); each
is followed by the LoRA backend, which adds what the adapters contribute to their rows, and by what ranks that share
the model compute of adapters together; their parts of o and down are summed with the adapters' parts in them.
``Decoder`` plans each batch anew; ``static_decoder`` runs the same layers over static buffers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from readapt_runtime.engine.core import Batch
from readapt_runtime.engine.draws import Draws
from readapt_runtime.engine.sampler import pick
from readapt_runtime.model.attention import LayerAttention
from readapt_runtime.model.backends import Backends
from readapt_runtime.model.config import Linear
from readapt_runtime.model.exchange import Alone, Exchange
from readapt_runtime.model.lora import LayerLora
from readapt_runtime.model.ops import Ops
from readapt_runtime.model.weights import DecoderWeights


class Layers:
    """A transformer of one of the families in ``family``, or a rank's share; one device, one dtype, no state."""

    def __init__(self, weights: DecoderWeights, ops: Ops, exchange: Exchange) -> None:
        self._weights = weights
        self._ops = ops
        self._exchange = exchange

    def run(self, token_ids: torch.Tensor, attention: LayerAttention, lora: LayerLora) -> torch.Tensor:
        """Token ids ``[tokens]`` -> what the head takes, ``[tokens, hidden]``."""
        hidden = F.embedding(token_ids, self._weights.embedding)  # [tokens, hidden]
        delta = None
        for index, layer in enumerate(self._weights.layers):
            x = self._ops.add_norm(hidden, delta, layer.input_norm)
            mixed = attention.run(index, self._linear(lora, index, Linear.QKV, x), layer.qk_norm)
            delta = self._exchange.sum(self._linear(lora, index, Linear.O, mixed))
            x = self._ops.add_norm(hidden, delta, layer.post_attention_norm)
            inner = self._ops.silu_mul(self._linear(lora, index, Linear.GATE_UP, x))
            delta = self._exchange.sum(self._linear(lora, index, Linear.DOWN, inner))
        return self._ops.add_norm(hidden, delta, self._weights.norm)

    def logits(self, last: torch.Tensor) -> torch.Tensor:
        """``[rows, hidden]`` -> ``[rows, vocab]``."""
        return self._exchange.join(self._weights.lm_head(last))

    def pick(self, logits: torch.Tensor, draws: Draws) -> torch.Tensor:
        """See ``sampler.pick``."""
        return pick(logits, *self._ops.greedy(logits), draws, self._ops.draw)

    def _linear(self, lora: LayerLora, index: int, linear: Linear, x: torch.Tensor) -> torch.Tensor:
        lora.begin(index, linear, x)
        y = self._weights.layers[index].linears[linear](x)
        lora.run(index, linear, x, y)
        self._exchange.add(index, linear, x, y)
        return y


class Decoder:
    """See ``engine.Model``; for backends that plan each batch, alone or of a rank's share.

    A step that can be computed in one call is.
    """

    def __init__(self, weights: DecoderWeights, backends: Backends, exchange: Exchange | None = None) -> None:
        self._exchange = exchange or Alone()
        self._layers = Layers(weights, backends.ops, self._exchange)
        self._attention, self._lora = backends.attention, backends.lora
        self._stack = backends.stack(weights) if exchange is None else None
        self._device = weights.embedding.device

    @torch.inference_mode()
    def forward(self, batch: Batch) -> torch.Tensor:
        """See ``engine.Model``."""
        batch = self._exchange.plan(batch.on(self._device))
        self._attention.plan(batch)
        self._lora.plan(batch)
        return self._layers.logits(self._run(batch.token_ids)[batch.sampled])

    def _run(self, token_ids: torch.Tensor) -> torch.Tensor:
        """What the head takes, ``[tokens, hidden]``, for the batch that was planned."""
        if self._stack is not None and self._stack.can_run:
            return self._stack.run(token_ids)
        return self._layers.run(token_ids, self._attention, self._lora)

    @torch.inference_mode()
    def pick(self, batch: Batch, logits: torch.Tensor) -> torch.Tensor:
        """See ``engine.Model``."""
        return self._layers.pick(logits, batch.draws.on(self._device))
