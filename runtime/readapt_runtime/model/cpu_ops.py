"""``Ops`` on a CPU: prepacked weights, everything else in one pass over memory each."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from readapt_kernels.cpu.launcher import CpuKernels
from readapt_runtime.model.ops import LinearOp


class CpuOps:
    """See ``Ops``; for dtypes of ``readapt_kernels.cpu.library.DTYPES``."""

    def __init__(self, eps: float, dtype: torch.dtype) -> None:
        self._eps = eps
        self.kernels = CpuKernels(dtype)

    def linear(self, weight: torch.Tensor, bias: torch.Tensor | None) -> LinearOp:
        has_onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        if not has_onednn or weight.dtype is not torch.bfloat16:
            return lambda x: F.linear(x, weight, bias)
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        product = torch.ops.mkldnn._linear_pointwise.default
        return lambda x: product(x, packed, bias, "none", [], "")

    def add_norm(self, hidden: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor) -> torch.Tensor:
        return self.kernels.add_norm(hidden, delta, weight, self._eps)

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        return self.kernels.silu_mul(gate_up)

    def greedy(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.kernels.greedy(logits)
