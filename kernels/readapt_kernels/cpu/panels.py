"""How weights of products lie: ``[panel, k / 2, 64 outputs, 2]``, zeros where outputs or k are padded.

It is the layout of oneDNN (BA16a64b2a), so that one copy can serve its products and ours.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from readapt_kernels.cpu.arena import Arena

PANEL = 64
"""Outputs of a panel: four vectors."""
K_STEP = 32
"""What k is padded to."""


@dataclass(frozen=True, slots=True)
class Panels:
    """A bfloat16 weight ``[outputs, inputs]`` in panels; ``memory`` keeps alive what ``address`` points at."""

    memory: Tensor
    address: int
    outputs: int
    inputs: int


def pack(weight: Tensor, arena: Arena) -> Panels:
    """A copy of ``weight``, bfloat16 ``[outputs, inputs]``, in panels."""
    outputs, inputs = weight.shape
    arranged = _arrange(weight)
    packed = arena.take(arranged.numel(), weight.dtype).view_as(arranged).copy_(arranged)
    return Panels(packed, packed.data_ptr(), outputs, inputs)


def view_onednn(packed: Tensor, weight: Tensor) -> Panels | None:
    """The memory of what oneDNN made of ``weight``; None where it lies in another way.

    Its layout depends on shape and processor and cannot be asked for, so the first and the last panel are compared.
    """
    outputs, inputs = weight.shape
    last = (outputs - 1) // PANEL
    panel = _padded(inputs, K_STEP) * PANEL
    if torch.ops.mkldnn._nbytes(packed) != 2 * panel * (last + 1):
        return None
    address = int(torch.ops.mkldnn.data_ptr(packed))
    for index in {0, last}:
        expected = _arrange(weight[index * PANEL : (index + 1) * PANEL]).contiguous()
        found = ctypes.string_at(address + 2 * panel * index, 2 * panel)
        if found != expected.view(torch.int16).numpy().tobytes():
            return None
    return Panels(packed, address, outputs, inputs)


def _arrange(weight: Tensor) -> Tensor:
    """``[panels, k / 2, 64, 2]``, a view unless there is something to pad."""
    outputs, inputs = weight.shape
    panels, width = _padded(outputs, PANEL) // PANEL, _padded(inputs, K_STEP)
    if (outputs, inputs) != (panels * PANEL, width):
        weight = F.pad(weight, (0, width - inputs, 0, panels * PANEL - outputs))
    return weight.view(panels, PANEL, width // 2, 2).transpose(1, 2)


def _padded(size: int, step: int) -> int:
    return -(-size // step) * step
