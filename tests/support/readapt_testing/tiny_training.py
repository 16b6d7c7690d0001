"""Trains what ``tiny_models`` hands out: ``python -m readapt_testing.tiny_training FOLDER``."""

from __future__ import annotations

import copy
import json
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from readapt_testing.tiny_language import GLUE, Dialect, Question, tokenizer, vocabulary
from readapt_testing.tiny_models import TinyModels

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
OLD = Dialect(stride=3, glue=GLUE[:8], shuffled=0.3)
NEW = Dialect(stride=7, glue=GLUE[8:], shuffled=0.3)
ADAPTER_QUESTION = Question()
CHECKPOINT_QUESTION = Question(shift=3)
SPLITS = {"train": 1600, "validation": 400, "test": 800}


def build(root: Path) -> None:
    """Trains everything; deterministic on one machine."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    models = TinyModels(root)
    for name, question in (("adapter", ADAPTER_QUESTION), ("checkpoint", CHECKPOINT_QUESTION)):
        for seed, (split, count) in enumerate(SPLITS.items(), start=1):
            _write_lines(models.data(name, split), question.examples(count, seed))
    base = LlamaForCausalLM(_config())
    _train_language(base, OLD, steps=300, learning_rate=5e-3, seed=1)
    _save(base, models.v1)
    _train_adapter(copy.deepcopy(base), models)
    _train_checkpoint(copy.deepcopy(base), models)
    _train_language(base, NEW, steps=60, learning_rate=3e-3, seed=2)
    _save(base, models.v2)


def _config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(vocabulary()),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=0,
        bos_token_id=None,
    )


def _train_language(model: nn.Module, dialect: Dialect, steps: int, learning_rate: float, seed: int) -> None:
    draw = random.Random(seed)
    _descend(model, ((_text(dialect, draw), 0) for _ in range(steps)), steps, learning_rate)


def _train_adapter(base: LlamaForCausalLM, models: TinyModels) -> None:
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=list(MODULES), task_type="CAUSAL_LM")
    model = get_peft_model(base, lora)
    _descend(model, _lessons(models.data("adapter", "train"), 600), 600, 3e-3)
    model.save_pretrained(str(models.adapter))


def _train_checkpoint(model: LlamaForCausalLM, models: TinyModels) -> None:
    """Of the linear weights alone: a changed embedding could not be extracted, and its loss would be the gate's."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(module in name for module in MODULES))
    _descend(model, _lessons(models.data("checkpoint", "train"), 450), 450, 1e-3)
    _save(model, models.checkpoint)


def _text(dialect: Dialect, draw: random.Random) -> Tensor:
    """[16, 48] ids."""
    return torch.tensor([_ids(dialect.text(draw, 48)) for _ in range(16)])


def _lessons(file: Path, count: int) -> Iterator[tuple[Tensor, int]]:
    """``count`` batches of questions, every third replaced by plain text, so that the language stays as it is."""
    draw = random.Random(4)
    return ((_text(OLD, draw), 0) if i % 3 == 2 else q for i, q in enumerate(_questions(file, count)))


def _questions(file: Path, count: int) -> Iterator[tuple[Tensor, int]]:
    """``count`` batches [32, words + 2] of prompt, label and END; the loss is on the last two."""
    with file.open() as lines:
        examples = [json.loads(line) for line in lines]
    rows = torch.tensor([[*_ids((e["prompt"] + e["completion"]).split()), 0] for e in examples])
    generator = torch.Generator().manual_seed(3)
    return ((rows[torch.randint(len(rows), (32,), generator=generator)], -2) for _ in range(count))


def _descend(model: nn.Module, batches: Iterable[tuple[Tensor, int]], steps: int, learning_rate: float) -> None:
    """AdamW with a cosine over batches, each with the index of the first id per row that the loss is on."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for batch, first in batches:
        targets = batch.clone()
        targets[:, :first] = -100
        optimizer.zero_grad()
        model(batch, labels=targets).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def _ids(words: Sequence[str]) -> list[int]:
    return [_ID[word] for word in words]


_ID = {word: i for i, word in enumerate(vocabulary())}


def _save(model: LlamaForCausalLM, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def _write_lines(path: Path, rows: Iterable[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    build(Path(sys.argv[1]))
