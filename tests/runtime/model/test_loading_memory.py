"""Loading a model takes the memory of one copy of it, whatever dtype it is stored in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

MIB = 1 << 20
BLOCKS = 16 * MIB
"""Beside the copy: one block of the file (8 MiB) and its conversion, and what the allocator keeps."""

_LOAD = """
import re, resource, sys
from pathlib import Path
import torch
from readapt_runtime.model.config import read_config
from readapt_runtime.model.ops import TorchOps
from readapt_runtime.model.weights import load_weights

def private(what):
    return int(re.search(what + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10

torch.set_num_threads(1)
folder, dtype, allowed = Path(sys.argv[1]), getattr(torch, sys.argv[2]), int(sys.argv[3])
config, cpu = read_config(folder), torch.device("cpu")
torch.ones(64, 64).to(dtype).sum().isfinite().item()
# The kernel refuses private memory beyond this, so a peak between two looks cannot hide.
limit = private("VmData") + allowed
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
before = private("RssAnon")
class Kept(TorchOps):
    held = []

    def linear(self, weight, bias):
        self.held.append(weight)
        return lambda x: x

weights = load_weights(folder, config, dtype, cpu, Kept(1e-5))
held = [weights.embedding, *Kept.held]
print(private("RssAnon") - before, sum(t.nbytes for t in held))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 65 MB in float32, the last tensor 25 MB of it: a copy of that one would not go unnoticed."""
    target = tmp_path_factory.mktemp("model")
    sizes = {"vocab_size": 24_000, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 5}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
    config = CONFIG_MAPPING["qwen2"].from_dict({"model_type": "qwen2", "tie_word_embeddings": False, **sizes, **heads})
    AutoModelForCausalLM.from_config(config).to(torch.float32).save_pretrained(target)
    return target


@pytest.mark.parametrize(("dtype", "width"), [("float32", 4), ("bfloat16", 2)])
def test_no_second_copy_is_held_while_loading(folder: Path, dtype: str, width: int) -> None:
    model = sum(path.stat().st_size for path in folder.glob("*.safetensors")) // 4 * width
    assert model > 25 * MIB
    command = [sys.executable, "-W", "ignore", "-c", _LOAD, str(folder), dtype, str(model + BLOCKS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    grown, held = done.stdout.split()
    assert int(held) == pytest.approx(model, rel=0.01)
    assert int(grown) < model + BLOCKS


def test_the_limit_of_this_test_is_felt(folder: Path) -> None:
    """Half a copy is not enough: otherwise the kernel would not be counting."""
    command = [sys.executable, "-W", "ignore", "-c", _LOAD, str(folder), "float32", str(30 * MIB)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "alloc" in done.stderr.lower() or "MemoryError" in done.stderr
