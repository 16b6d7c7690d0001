"""Where tensors are computed: what ``--device`` of every command means."""

from __future__ import annotations

import os

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


def choose_repeatable(wanted: str) -> torch.device:
    """As ``choose_device``; on a GPU equal inputs then give equal numbers, as far as torch has such kernels.

    To be called before anything runs on a GPU. Raises BadDevice.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    device = choose_device(wanted)
    if device.type == "cuda":
        torch.use_deterministic_algorithms(True, warn_only=True)
    return device


def multiplies_bf16() -> bool:
    """Whether the processor has bf16 products of its own; without them torch takes nine times as long as in fp32."""
    return torch.backends.cpu.get_cpu_capability() != "DEFAULT" and torch.cpu._is_avx512_bf16_supported()
