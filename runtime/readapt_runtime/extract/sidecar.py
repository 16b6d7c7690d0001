"""What changed and cannot be LoRA: norms, biases, embeddings, heads, modules that were not targeted.

In: the names of changed tensors. Out: ``sidecar.safetensors`` with the checkpoint's own values in its own dtype,
exactly. Copied in pieces, because an embedding may be larger than everything else together.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from readapt_runtime.safe_tensors import Checkpoint
from readapt_runtime.tensor_stream import copied, write_stream

SIDECAR_WEIGHTS = "sidecar.safetensors"


def write_sidecar(folder: Path, checkpoint: Checkpoint, names: Sequence[str]) -> None:
    """Copies ``names`` out of ``checkpoint``; nothing is written when there are none."""
    if names:
        write_stream(folder / SIDECAR_WEIGHTS, *copied(checkpoint, names))


def why_not_lora(name: str) -> str:
    """What kind of tensor this is, for the report."""
    if "embed" in name:
        return "embedding"
    if name.startswith("lm_head"):
        return "output head"
    return "bias" if name.endswith(".bias") else "norm" if "norm" in name else "not a linear module"
