"""An extraction holds a few tensors, never a checkpoint; shards and stacks of modules change nothing."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from readapt_runtime.difference import CheckpointPair
from readapt_runtime.directions import leading_directions
from readapt_runtime.extract import RankPolicy, extract
from readapt_runtime.extract.spool import open_spool
from readapt_runtime.lowrank import LowRank
from readapt_runtime.progress import JsonLog

LOG = JsonLog(io.StringIO())
Edit = Callable[[dict[str, torch.Tensor]], object]
Make = Callable[[Edit], Path]
Change = Callable[..., Edit]

_PEAK = """
import io, re, sys, threading
from pathlib import Path
import torch
from readapt_runtime.drift import measure
from readapt_runtime.extract import RankPolicy, extract
from readapt_runtime.progress import JsonLog

def private():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

def peak_of(work):
    over, peak = threading.Event(), [0]
    def watch():
        while not over.wait(0.001):
            peak[0] = max(peak[0], private())
    before = private()
    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    over.set()
    watcher.join()
    return (peak[0] - before) * 1024

torch.set_num_threads(1)
torch.linalg.eigh(torch.ones(64, 64, dtype=torch.float64) @ torch.ones(64, 64, dtype=torch.float64))
log = JsonLog(io.StringIO())
root, kind, layers = Path(sys.argv[1]), *sys.argv[2:]
old, new, out = (root / f"{name}-{layers}" for name in ("old", "new", kind))
if kind == "extract":
    print(peak_of(lambda: extract(old, new, out, RankPolicy(budget=10**5, max_rank=16), log)))
else:
    print(peak_of(lambda: measure(old, new, out, log, rank=8)))
"""
HIDDEN, INNER, VOCABULARY = 1024, 3072, 3000


def write_versions(root: Path, layers: int) -> None:
    """Two versions in bfloat16; the vocabulary of the second is sorted the other way round."""
    config = {"model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": layers}
    config |= {"num_attention_heads": 8, "num_key_value_heads": 8, "tie_word_embeddings": True}
    names = {f"self_attn.{n}_proj": (HIDDEN, HIDDEN) for n in "qkvo"}
    names |= {"mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN), "mlp.down_proj": (HIDDEN, INNER)}
    shapes = {f"model.layers.{n}.{name}.weight": shape for n in range(layers) for name, shape in names.items()}
    shapes["model.embed_tokens.weight"] = (VOCABULARY, HIDDEN)
    for version in ("old", "new"):
        folder = root / f"{version}-{layers}"
        folder.mkdir()
        generator = torch.Generator().manual_seed(len(version))
        tensors = {}
        for seed, (name, shape) in enumerate(shapes.items()):
            weight = torch.randn(shape, generator=generator.manual_seed(seed)).bfloat16()
            moved = torch.linspace(-1, 1, shape[0])[:, None] * torch.linspace(-1, 1, shape[1])
            tensors[name] = weight + 0.5 * moved.bfloat16() if version == "new" else weight
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config))
        words = [f"w{at}" for at in range(VOCABULARY)]
        vocab = {word: at for at, word in enumerate(words if version == "old" else reversed(words))}
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}}))


def test_memory_is_that_of_the_largest_pair_of_tensors_whatever_the_model(tmp_path: Path) -> None:
    """Private memory above the imports, sampled every millisecond, each in a process that holds nothing of another."""
    for layers in (1, 4):
        write_versions(tmp_path, layers)
    pair = 2 * INNER * HIDDEN * 2
    assert (tmp_path / "old-4" / "model.safetensors").stat().st_size > 9 * pair / 2
    for what in (("extract", "1"), ("extract", "4"), ("drift", "4")):
        command = [sys.executable, "-c", _PEAK, str(tmp_path), *what]
        peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        assert pair / 4 < peak < 3 * pair, f"{what}: {peak / pair:.2f} pairs"


def test_shards_change_nothing(base: Path, edited: Make, low_rank_change: Change, tmp_path: Path) -> None:
    finetuned = edited(low_rank_change(seed=1, rank=20))
    for name, folder in (("base", base), ("finetuned", finetuned)):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        model.save_pretrained(tmp_path / name, max_shard_size="60KB")
        assert len(list((tmp_path / name).glob("*.safetensors"))) > 3
    extract(base, finetuned, tmp_path / "whole", RankPolicy(energy=0.9), LOG)
    extract(tmp_path / "base", tmp_path / "finetuned", tmp_path / "sharded", RankPolicy(energy=0.9), LOG)
    for name in ("adapter_model.safetensors", "report.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "sharded" / name).read_bytes()


def test_modules_of_one_shape_can_be_decomposed_together(base: Path, edited: Make, low_rank_change: Change) -> None:
    """The order of a GPU, on a CPU: shape by shape, in stacks that the memory bounds."""
    with CheckpointPair(base, edited(low_rank_change(seed=1, rank=50))) as pair:
        names = list(pair.shapes)
        alone = {name: (change, found) for name, change, found in leading_directions(pair, names, 4)}
        order = []
        for name, change, found in leading_directions(pair, names, 4, together=13_000):
            order.append(name)
            expected_change, expected = alone[name]
            assert found is not None
            assert expected is not None
            assert change == expected_change
            torch.testing.assert_close(found.s, expected.s, rtol=1e-4, atol=0)
        assert sorted(order) == sorted(names)
        assert order != names


def test_what_is_spooled_comes_back_cut_to_any_rank(tmp_path: Path) -> None:
    factors = {name: LowRank(torch.randn(out, 6), torch.randn(6, 9)) for name, out in (("a", 4), ("b", 7))}
    with open_spool(tmp_path) as spool:
        for name, value in factors.items():
            spool.put(name, value)
        for name, rank in (("b", 6), ("a", 1), ("b", 2), ("a", 6)):
            found = spool.get(name, rank)
            assert torch.equal(found.left, factors[name].left[:, :rank])
            assert torch.equal(found.right, factors[name].right[:rank])
            assert found.left.is_contiguous()
        for rank in (0, 7):
            with pytest.raises(ValueError, match=f"a has 6 directions, not {rank}"):
                spool.get("a", rank)
    assert list(tmp_path.iterdir()) == []


def test_a_budget_is_kept_over_the_whole_model(
    base: Path, edited: Make, low_rank_change: Change, tmp_path: Path
) -> None:
    finetuned = edited(low_rank_change(seed=1, rank=20))
    report = extract(base, finetuned, tmp_path / "out", RankPolicy(budget=9_000), LOG).report
    written = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert sum(value.numel() for value in written.values()) == report.parameters <= 9_000
    left_out = [name for name, module in report.modules.items() if module.rank == 0]
    assert left_out
    assert not any(name in key for key in written for name in left_out)
    assert all(report.modules[name].relative_error == 1.0 for name in left_out)
    assert f"the budget leaves {len(left_out)} of 14 changed modules out of the adapter" in report.warnings


def test_a_relative_error_is_what_is_measured_afterwards(
    base: Path, edited: Make, low_rank_change: Change, tmp_path: Path
) -> None:
    finetuned = edited(low_rank_change(seed=1, rank=40))
    report = extract(base, finetuned, tmp_path / "out", RankPolicy(relative_error=0.4), LOG).report
    assert all(module.relative_error <= 0.4 + 1e-4 for module in report.modules.values())
    assert len({module.rank for module in report.modules.values()}) > 1
