"""What one writes without a tool: torch.svd_lowrank over the differences of all linear modules, saved for PEFT.

python extraction_by_torch.py BASE FINETUNED OUT RANK NITER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

OVERSAMPLE = 16


def main(base: Path, finetuned: Path, out: Path, rank: int, iterations: int) -> None:
    out.mkdir()
    factors, modules = {}, []
    with safe_open(base / "model.safetensors", "pt") as old, safe_open(finetuned / "model.safetensors", "pt") as new:
        for name in [name for name in set(old.keys()) if "_proj.weight" in name]:
            delta = new.get_tensor(name).float() - old.get_tensor(name).float()
            u, s, v = torch.svd_lowrank(delta, q=rank + OVERSAMPLE, niter=iterations)
            root = s[:rank].sqrt()
            modules.append(name.removesuffix(".weight"))
            factors[f"base_model.model.{modules[-1]}.lora_A.weight"] = (v[:, :rank] * root).T.contiguous()
            factors[f"base_model.model.{modules[-1]}.lora_B.weight"] = (u[:, :rank] * root).contiguous()
    save_file(factors, out / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": modules}
    (out / "adapter_config.json").write_text(json.dumps(config))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
