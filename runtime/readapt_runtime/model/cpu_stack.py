"""All layers of a step in one compiled call on a CPU, where every row decodes and our kernels have all the weights."""

from __future__ import annotations

import torch

from readapt_kernels.cpu.stack import Product, Stack, StackLayer
from readapt_runtime.model.config import DecoderConfig, Linear
from readapt_runtime.model.cpu_attention import CpuAttention
from readapt_runtime.model.cpu_lora import CpuLora
from readapt_runtime.model.cpu_ops import PanelLinear
from readapt_runtime.model.weights import DecoderWeights, LayerWeights


class CpuStack:
    """Computes what ``Layers`` would from the same weights, attention and LoRA, to the bit."""

    def __init__(self, config: DecoderConfig, weights: DecoderWeights, attention: CpuAttention, lora: CpuLora) -> None:
        """For weights that ``fits``."""
        layers = [_layer(config, layer, attention, index) for index, layer in enumerate(weights.layers)]
        self.kernel = Stack(layers, weights.norm, attention.layout, config.rms_norm_eps)
        self._embedding = weights.embedding
        self._attention, self._lora = attention, lora

    @property
    def can_run(self) -> bool:
        """Whether it has kernels for all of the step that attention and LoRA have planned."""
        return self._attention.only_decodes and not self._lora.has_long

    def run(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Token ids ``[tokens]`` -> what the head takes, ``[tokens, hidden]``, valid until the next run."""
        hidden = self._embedding.index_select(0, token_ids)
        return self.kernel.run(hidden, self._attention.rows, self._lora.segments, self._lora.bridge)


def _layer(config: DecoderConfig, layer: LayerWeights, attention: CpuAttention, index: int) -> StackLayer:
    norm = layer.qk_norm
    return StackLayer(
        input_norm=layer.input_norm,
        post_attention_norm=layer.post_attention_norm,
        qk_norm=None if norm is None else (norm.q, norm.k),
        rotary=attention.rotary(index),
        pages=attention.layers[index],
        products={linear.value: _product(config, layer, linear) for linear in config.linears},
    )


def _product(config: DecoderConfig, layer: LayerWeights, linear: Linear) -> Product:
    op = layer.linears[linear]
    if not isinstance(op, PanelLinear):
        raise TypeError(f"the weight of {linear} is not in panels: {op}")
    return Product(op.panels, op.bias, len(config.linears[linear].slices))


def fits(weights: DecoderWeights) -> bool:
    return all(isinstance(op, PanelLinear) for layer in weights.layers for op in layer.linears.values())
