"""What changed and cannot be LoRA: norms, biases, embeddings, heads, modules that were not targeted.

In: the names of changed tensors. Out: ``sidecar.safetensors`` with the checkpoint's own values in its own dtype,
exactly. Written tensor by tensor, because an embedding may be larger than everything else together.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from readapt_runtime.safe_tensors import DTYPES, Checkpoint

SIDECAR_WEIGHTS = "sidecar.safetensors"
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_sidecar(folder: Path, checkpoint: Checkpoint, names: Sequence[str]) -> None:
    """Copies ``names`` out of ``checkpoint``; nothing is written when there are none."""
    if not names:
        return
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name in names:
        info = checkpoint.infos[name]
        size = info.end - info.begin
        offsets = [position, position + size]
        header[name] = {"dtype": _NAMES[info.dtype], "shape": list(info.shape), "data_offsets": offsets}
        position += size
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # the format wants the data aligned
    with (folder / SIDECAR_WEIGHTS).open("wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in names:
            stream.write(checkpoint.read_bytes(name))


def why_not_lora(name: str) -> str:
    """What kind of tensor this is, for the report."""
    if "embed" in name:
        return "embedding"
    if name.startswith("lm_head"):
        return "output head"
    return "bias" if name.endswith(".bias") else "norm" if "norm" in name else "not a linear module"
