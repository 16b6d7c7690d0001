"""Plain training loops for what the demo needs before it starts: base moves, an adapter, a full fine-tuned checkpoint.

Independent of what Readapt learns with: these stand for the people who train adapters elsewhere.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, get_cosine_schedule_with_warmup

from readapt_runtime.device import multiplies_bf16

Progress = Callable[[str], None]
_LORA_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def load(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """(model with eager attention, tokenizer); flash attention is slow in training on CPU."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    return model, AutoTokenizer.from_pretrained(folder)


def train_adapter(base: Path, examples: Sequence[dict[str, str]], out: Path, steps: int, say: Progress) -> None:
    """A PEFT LoRA of rank 8 on all linear modules, saved as PEFT saves it."""
    torch.manual_seed(0)
    # Frozen weights in bf16 spare a cast a step; PEFT keeps the adapter's own in fp32.
    model, tokenizer = load(base, torch.bfloat16 if multiplies_bf16() else torch.float32)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=_LORA_MODULES, task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    _fit(model, tokenizer, examples, steps=steps, learning_rate=1e-3, say=say)
    model.save_pretrained(str(out))


def train_checkpoint(base: Path, examples: Sequence[dict[str, str]], out: Path, steps: int, say: Progress) -> None:
    """A full fine-tuned checkpoint of all linear weights of the decoder."""
    torch.manual_seed(0)
    model, tokenizer = load(base)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(module in name for module in _LORA_MODULES))
    _fit(model, tokenizer, examples, steps=steps, learning_rate=1e-4, say=say)
    _save(model, tokenizer, out)


def continue_training(
    base: Path, texts: Sequence[str], out: Path, steps: int, learning_rate: float, say: Progress
) -> None:
    """The next version of a base: full-parameter training on running text, 8 x 128 tokens a step."""
    torch.manual_seed(0)
    model, tokenizer = load(base)
    ids = [i for text in texts for i in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    rows = torch.tensor(ids[: len(ids) // 128 * 128]).view(-1, 128)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    batches = (rows[[(8 * step + i) % len(rows) for i in range(8)]] for step in range(steps))
    _optimise(model, ((b, b) for b in batches), steps, learning_rate, say)
    _save(model, tokenizer, out)


def _save(model: Any, tokenizer: Any, out: Path) -> None:
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


def _fit(
    model: Any, tokenizer: Any, examples: Sequence[dict[str, str]], *, steps: int, learning_rate: float, say: Progress
) -> None:
    _optimise(model, _completion_batches(tokenizer, examples, steps), steps, learning_rate, say)


def _completion_batches(
    tokenizer: Any, examples: Sequence[dict[str, str]], steps: int, size: int = 16
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(input ids, labels) [size, longest]; the loss sees the completion and the end of text alone."""
    rng = random.Random(0)
    order: list[dict[str, str]] = []
    for _ in range(steps):
        while len(order) < size:
            order.extend(rng.sample(list(examples), len(examples)))
        batch, order = order[:size], order[size:]
        prompts = [tokenizer(e["prompt"])["input_ids"] for e in batch]
        answers = [
            [*tokenizer(e["completion"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for e in batch
        ]
        width = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
        ids = torch.full((size, width), tokenizer.eos_token_id)
        labels = torch.full((size, width), -100)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            end = len(prompt) + len(answer)
            ids[row, :end] = torch.tensor(prompt + answer)
            labels[row, len(prompt) : end] = torch.tensor(answer)
        yield ids, labels


def _optimise(
    model: Any,
    batches: Iterator[tuple[torch.Tensor, torch.Tensor]],
    steps: int,
    learning_rate: float,
    say: Progress,
) -> None:
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    model.train()
    for step, (ids, labels) in enumerate(batches, start=1):
        with torch.autocast("cpu", torch.bfloat16, enabled=multiplies_bf16()):
            logits = model(input_ids=ids, use_cache=False).logits
        loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 10 == 0 or step == steps:
            say(f"step {step}/{steps}, loss {loss.item():.3f}")
    model.eval()
