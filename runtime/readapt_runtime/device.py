"""Where tensors are computed: what ``--device`` of every command means."""

from __future__ import annotations

import torch

from readapt_api.errors import Terminal


class BadDevice(Terminal):
    """A device that this machine, or this build of torch, does not have."""


def choose_device(wanted: str) -> torch.device:
    """``auto``: a GPU when there is one; else what torch calls the device. Raises BadDevice."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BadDevice(f"--device {wanted}: {str(error).splitlines()[0]}") from error
    return device


def multiplies_bf16() -> bool:
    """Whether the processor has bf16 products of its own; without them torch takes nine times as long as in fp32."""
    return torch.backends.cpu.get_cpu_capability() != "DEFAULT" and torch.cpu._is_avx512_bf16_supported()
