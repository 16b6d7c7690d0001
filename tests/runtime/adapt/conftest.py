"""A real base move in miniature: a tiny Llama that learned a language, an adapter on it, and the base trained on."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from readapt_runtime.adapt.base import LoadedBase, load_base
from readapt_runtime.adapt.data import Example, Splits, split
from readapt_runtime.adapt.tokens import encode
from readapt_runtime.adapt.tuning import Evaluation, Lessons, Tuning, tune
from readapt_runtime.lora_format import LoraAdapter, LoraModule, linear_shapes, write_adapter
from readapt_testing.tiny_language import GLUE, Dialect, Question, tokenizer, vocabulary

OLD, NEW = f"sha256:{'1' * 64}", f"sha256:{'2' * 64}"


@dataclass(frozen=True)
class World:
    """Folders of a base move, and what they hold."""

    folder: Path
    old: LoadedBase
    new: LoadedBase
    adapter: LoraAdapter
    splits: Splits


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("move")
    torch.set_num_threads(1)
    model = _new_model()
    _read(model, Dialect(3, GLUE[:8], 0.3), steps=100, rate=5e-3, seed=1)
    _save(model, folder / "v1")
    _read(model, Dialect(7, GLUE[8:], 0.3), steps=60, rate=3e-3, seed=2)
    _save(model, folder / "v2")
    old, new = load_base(folder / "v1", OLD), load_base(folder / "v2", NEW)
    files = {
        name: _examples(count, seed)
        for name, count, seed in (("train", 1000, 1), ("validation", 400, 2), ("test", 1200, 3))
    }
    for name, examples in files.items():
        _write(folder / "data" / f"{name}.jsonl", examples)
    splits = split(files["train"], files["validation"], files["test"])
    adapter = _train(old, splits.train)
    write_adapter(folder / "adapter", adapter, OLD)
    return World(folder, old, new, adapter, splits)


def _new_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary()),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            eos_token_id=0,
            bos_token_id=None,
        )
    )


def _read(model: Any, dialect: Dialect, steps: int, rate: float, seed: int) -> None:
    ids = {word: i for i, word in enumerate(vocabulary())}
    draw = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.tensor([[ids[w] for w in dialect.text(draw, 64)] for _ in range(32)])
        loss = model(rows, labels=rows).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def _save(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def _examples(count: int, seed: int) -> list[Example]:
    return [Example(e["prompt"], e["completion"]) for e in Question().examples(count, seed)]


def _write(path: Path, examples: Iterable[Example]) -> None:
    path.parent.mkdir(exist_ok=True)
    rows = (json.dumps({"prompt": e.prompt, "completion": e.completion}) for e in examples)
    path.write_text("".join(f"{row}\n" for row in rows))


def _train(base: LoadedBase, examples: Iterable[Example]) -> LoraAdapter:
    """From PEFT's usual start: A random, B zero."""
    torch.manual_seed(0)
    start = LoraAdapter(
        {
            name: LoraModule(name, torch.empty(8, into).uniform_(-1, 1) / math.sqrt(into), torch.zeros(out, 8), 2.0)
            for name, (out, into) in linear_shapes(base.model.config.to_dict()).items()
        }
    )
    settings = Tuning(max_steps=160, learning_rate=4e-3, batch_size=32, seed=0, evaluations=1, strong=0.0, weak=0.0)
    worst = Evaluation(0, 0.0, None, feasible=False, ready=False)
    last = Evaluation(160, 1.0, None, feasible=True, ready=False)
    return tune(base, start, worst, Lessons(encode(base, list(examples))), settings, lambda *_: last).adapter
