"""Attention by the Triton kernels: KV write, decode rows and prompts in one launch each, over static buffers."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from readapt_kernels.attention.decode.launcher import DecodeWorkspace, paged_decode, plan_decode
from readapt_kernels.attention.operands import HeadShape
from readapt_kernels.attention.prefill.launcher import PrefillWorkspace, paged_prefill, plan_prefill
from readapt_kernels.kv_write.launcher import kv_write
from readapt_runtime.engine.pool import BLOCK_TOKENS, PagePool
from readapt_runtime.model.attention import Angles, QkNorm, Rotation
from readapt_runtime.model.config import DecoderConfig
from readapt_runtime.model.replay import StepShape
from readapt_runtime.model.step_buffer import StepFields, StepLimits

_INTERPRETED_PROGRAMS = 3


class TritonAttention:
    """For a pool whose blocks are ``[tokens, kv heads, dim]``; ``fields`` are those of the device."""

    def __init__(
        self,
        config: DecoderConfig,
        pool: PagePool,
        tables: tuple[torch.Tensor, torch.Tensor],
        limits: StepLimits,
        fields: StepFields,
    ) -> None:
        device, dtype = pool.device, pool.dtype
        shape = HeadShape(config.num_heads, config.num_kv_heads, config.head_dim)
        heads = (config.num_kv_heads, config.head_dim)
        self.kv = [
            pool.pages[:, layer].view(pool.num_pages, 2, BLOCK_TOKENS, *heads) for layer in range(config.num_layers)
        ]
        self.fields = fields
        self.rotation = Rotation(config, tables)
        self.scale = config.head_dim**-0.5
        programs = None if device.type == "cuda" else _INTERPRETED_PROGRAMS
        self.decode_space = DecodeWorkspace.allocate(shape, limits.max_rows, dtype, device, programs)
        self.prompt_space = PrefillWorkspace.allocate(shape, limits.max_tokens, limits.max_rows, dtype, device)

    def launches(self, shape: StepShape) -> AttentionLaunches:
        """Those of a step; what all layers share is launched now."""
        if shape.decodes:
            plan_decode(self.fields.decode, self.decode_space)
        if shape.prompts:
            plan_prefill(self.fields.prompts, self.prompt_space)
        return AttentionLaunches(self, shape, self.rotation.angles(self.fields.positions[: shape.tokens]))


@dataclass(frozen=True, slots=True)
class AttentionLaunches:
    """See ``LayerAttention``."""

    attention: TritonAttention
    shape: StepShape
    angles: Angles

    def run(self, layer: int, qkv: torch.Tensor, norm: QkNorm | None) -> torch.Tensor:
        of, fields = self.attention, self.attention.fields
        q, k, v = of.rotation.run(layer, qkv, norm, self.angles)
        kv = of.kv[layer]
        kv_write(k, v, kv, fields.slots, fields.num_tokens)
        out = torch.empty_like(q)
        if self.shape.decodes:
            paged_decode(q, kv, fields.decode, out, of.scale, of.decode_space)
        if self.shape.prompts:
            paged_prefill(q, kv, fields.prompts, out, of.scale, of.prompt_space)
        return out.flatten(1)
