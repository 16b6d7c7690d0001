from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from readapt_api.jobs import (
    DriftRequest,
    ExtractRequest,
    FetchRequest,
    FetchRole,
    FetchSource,
    GateSettings,
    Request,
    Summary,
)
from readapt_runtime.jobs.main import run
from readapt_runtime.store import Store
from readapt_testing.tiny_llama import byte_tokenizer, write_adapter_folder, write_base

LABELS = (" yes", " no", " maybe")


@dataclass(frozen=True, slots=True)
class Ended:
    """What the operator sees of a Job."""

    code: int
    summary: Summary


@dataclass(frozen=True, slots=True)
class Bench:
    """A store, and Jobs run over it in this process."""

    folder: Path
    store: Store

    def run(self, request: Request) -> Ended:
        path, message = self.folder / "request.json", self.folder / "termination-log"
        path.write_text(json.dumps(request.to_wire()))
        arguments = [request.kind.value, "--request", str(path), "--store", str(self.store.root)]
        code = run([*arguments, "--termination-log", str(message)])
        assert message.stat().st_size <= 4096
        return Ended(code, Summary.model_validate_json(message.read_bytes()))


@pytest.fixture(autouse=True)
def keep_signals() -> Iterator[None]:
    """A Job ignores SIGTERM at its end; this process goes on."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, Store(tmp_path / "store"))


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """v1, v2, an adapter on v1, a checkpoint of v1, and data: as users would mount them.

    The checkpoint is right about every example of the test split.
    """
    root = tmp_path_factory.mktemp("sources")
    write_base(root / "v1", layers=2)
    write_adapter_folder(root / "adapter", root / "v1", rank=4, seed=1)
    for name, rank, size in (("v2", 60, 0.01), ("checkpoint", 6, 0.1)):
        _changed_copy(root / "v1", root / name, rank, size)
    judge = AutoModelForCausalLM.from_pretrained(root / "checkpoint", dtype=torch.float32).eval()
    for split, count in (("train", 30), ("validation", 40), ("test", 240)):
        texts = [f"{split} question {i}:" for i in range(count)]
        labels = [_likeliest(judge, text) if split == "test" else LABELS[i % 3] for i, text in enumerate(texts)]
        lines = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
        (root / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


@pytest.fixture
def source(sources: Path, tmp_path: Path) -> Callable[..., FetchSource]:
    """One source by name; with ``copy`` one that may be damaged."""

    def make(name: str, split: str = "", copy: bool = False) -> FetchSource:
        path = sources / name
        if copy:
            path = tmp_path / f"source-{name}"
            (shutil.copytree if (sources / name).is_dir() else shutil.copy)(sources / name, path)
        return FetchSource(uri=f"pvc://models/{name}", path=str(path), name=split)

    return make


def _fetch(bench: Bench, role: FetchRole, *sources: FetchSource, **options: Any) -> str:
    ended = bench.run(FetchRequest(role=role, sources=sources, **options))
    assert ended.code == 0, ended.summary.message
    return ended.summary.fetch.digest


@pytest.fixture
def drift_request(bench: Bench, source: Callable[..., FetchSource]) -> DriftRequest:
    bases = [_fetch(bench, FetchRole.BASE, source(name)) for name in ("v1", "v2")]
    return DriftRequest(old_base=bases[0], new_base=bases[1])


@pytest.fixture
def extract_request(bench: Bench, source: Callable[..., FetchSource]) -> ExtractRequest:
    base = _fetch(bench, FetchRole.BASE, source("v1"))
    splits = tuple(source(f"{name}.jsonl", name) for name in ("train", "validation", "test"))
    return ExtractRequest(
        name="support",
        base=base,
        checkpoint=_fetch(bench, FetchRole.CHECKPOINT, source("checkpoint"), base=base),
        data=_fetch(bench, FetchRole.DATA, *splits, prompt_field="text", completion_field="label"),
        fixed_rank=8,
        gate=GateSettings(max_regression="0.05"),
    )


@torch.inference_mode()
def _likeliest(model: Any, text: str) -> str:
    """The label with the largest mean log-probability per token, one label at a time."""
    tokenizer = byte_tokenizer()
    prompt = len(tokenizer(text).input_ids)

    def score(label: str) -> float:
        ids = torch.tensor([tokenizer(text + label).input_ids])
        logs = model(ids).logits[0, prompt - 1 : -1].double().log_softmax(-1)
        return float(logs.gather(1, ids[0, prompt:, None]).mean())

    return max(LABELS, key=score)


def _changed_copy(base: Path, target: Path, rank: int, size: float) -> None:
    shutil.copytree(base, target)
    generator = torch.Generator().manual_seed(rank)
    tensors = load_file(target / "model.safetensors")
    for name in sorted(n for n in tensors if "_proj" in n):
        left = torch.randn(tensors[name].shape[0], rank, generator=generator)
        tensors[name] += size * left @ torch.randn(rank, tensors[name].shape[1], generator=generator)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
