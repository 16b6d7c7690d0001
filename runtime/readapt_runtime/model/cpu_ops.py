"""``Ops`` on a CPU: prepacked weights, everything else in one pass over memory each.

Products with bfloat16 weights are our kernels'. Where oneDNN has instructions that ours do not use (AMX, and whatever
other processors than x86 have) they are oneDNN's, but for a few rows: there memory is the limit, and ours read at its
speed.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from readapt_kernels.cpu.arena import Arena
from readapt_kernels.cpu.launcher import CpuKernels
from readapt_kernels.cpu.panels import Panels, pack, view_onednn
from readapt_runtime.engine.draws import Draws
from readapt_runtime.model.ops import LinearOp

_FEW = 4
"""Rows up to which a product takes as long as reading its weights, with or without matrix units."""


@dataclass(frozen=True, slots=True)
class PanelLinear:
    """See ``LinearOp``; always our own kernel."""

    kernels: CpuKernels
    panels: Panels
    bias: torch.Tensor | None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.kernels.linear(x, self.panels, self.bias)


class CpuOps:
    """See ``Ops``; for dtypes of ``readapt_kernels.cpu.library.DTYPES``."""

    def __init__(self, eps: float, dtype: torch.dtype) -> None:
        self._eps = eps
        self._arena = Arena()
        self.kernels = CpuKernels(dtype)

    def linear(self, weight: torch.Tensor, bias: torch.Tensor | None) -> LinearOp:
        if weight.dtype is not torch.bfloat16:
            return lambda x: F.linear(x, weight, bias)
        if prefers_onednn():
            return _onednn(self.kernels, weight, bias)
        return PanelLinear(self.kernels, pack(weight, self._arena), bias)

    def add_norm(self, hidden: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor) -> torch.Tensor:
        return self.kernels.add_norm(hidden, delta, weight, self._eps)

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        return self.kernels.silu_mul(gate_up)

    def greedy(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.kernels.greedy(logits)

    def draw(self, logits: torch.Tensor, best: torch.Tensor, draws: Draws) -> torch.Tensor:
        return self.kernels.draw(logits, best, draws.rows, draws.temperature, draws.top_p, draws.point)


def prefers_onednn() -> bool:
    """Whether oneDNN multiplies bfloat16 with instructions that our kernels do not use."""
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    other = platform.machine() != "x86_64"
    return available and (other or bool(torch.cpu.get_capabilities().get("amx_bf16")))


def _onednn(kernels: CpuKernels, weight: torch.Tensor, bias: torch.Tensor | None) -> LinearOp:
    """oneDNN's product; for a few rows ours, reading the same memory."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    product = torch.ops.mkldnn._linear_pointwise.default
    panels = view_onednn(packed, weight)

    def run(x: torch.Tensor) -> torch.Tensor:
        if panels is not None and x.shape[0] <= _FEW:
            return kernels.linear(x, panels, bias)
        y: torch.Tensor = product(x, packed, bias, "none", [], "")
        return y

    return run
