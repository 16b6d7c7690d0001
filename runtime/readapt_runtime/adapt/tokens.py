"""From examples to tensors.

The input of training and scoring is tokenizer(prompt + completion) without chat template, with EOS appended; the
loss is on the completion and EOS. Batches are padded on the left, so that what is read lies at the end of each row,
and cut by length, so that little is padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from readapt_runtime.adapt.base import LoadedBase
from readapt_runtime.adapt.data import Example

BATCH_TOKENS = 2048
"""Tokens of one forward pass, padding included: enough to keep the matrix units busy, little enough for caches."""
_BATCH_LOGITS = 1024
"""Positions of one forward pass whose logits are computed: 1024 x 49,152 fp32 are 200 MB."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example: ``ids[:context]`` is read, ``ids[context:]`` is the answer and ends with EOS."""

    ids: tuple[int, ...]
    context: int


def joint_ids(base: LoadedBase, texts: Sequence[str]) -> list[list[int]]:
    """The token ids of each text as the tokenizer makes them, without an EOS of its own."""
    ids: list[list[int]] = base.tokenizer(list(texts), return_attention_mask=False)["input_ids"]
    return [row[:-1] if row and row[-1] == base.eos else row for row in ids]


def shared(rows: Sequence[list[int]]) -> int:
    """How many leading ids all rows have in common."""
    first, last = min(rows), max(rows)
    return next((i for i, (x, y) in enumerate(zip(first, last, strict=False)) if x != y), min(len(first), len(last)))


def encode(base: LoadedBase, examples: Sequence[Example]) -> list[Encoded]:
    """Prompt and completion are tokenised together; the answer starts at the first id that the prompt alone lacks."""
    prompts = joint_ids(base, [e.prompt for e in examples])
    wholes = joint_ids(base, [e.prompt + e.completion for e in examples])
    return [_encode(base, p, w) for p, w in zip(prompts, wholes, strict=True)]


def _encode(base: LoadedBase, prompt: list[int], whole: list[int]) -> Encoded:
    # At least one id must be read before the first answer id is predicted.
    context = max(1, min(shared([prompt, whole]), len(whole) - 1))
    ids = (*whole, base.eos)
    cut = max(0, min(len(ids) - base.max_tokens, context - 1))
    return Encoded(ids[cut:], context - cut)


def batches(lengths: Sequence[int], reads: Sequence[int]) -> Iterator[list[int]]:
    """Indices of one batch after the other, longest first, within the budgets of tokens and of logits."""
    batch: list[int] = []
    longest = widest = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        longest, widest = max(longest, lengths[index]), max(widest, reads[index])
        size = len(batch) + 1
        if batch and (size * longest > BATCH_TOKENS or size * widest > _BATCH_LOGITS):
            yield batch
            batch, longest, widest = [], lengths[index], reads[index]
        batch.append(index)
    if batch:
        yield batch


def answer_losses(base: LoadedBase, rows: Sequence[Encoded]) -> Tensor:
    """[rows] mean negative log-likelihood per answer token (EOS included) in nats, fp32, on the base's device."""
    longest = max(len(r.ids) for r in rows)
    answer = max(len(r.ids) - r.context for r in rows)
    tokens = torch.tensor([(0,) * (longest - len(r.ids)) + r.ids for r in rows])
    valid = torch.tensor([[False] * (longest - len(r.ids)) + [True] * len(r.ids) for r in rows])
    logits = base.logits(tokens, positions_of(valid), causal(valid), last=answer + 1)[:, :-1]
    targets = tokens[:, -answer:].to(base.device)
    counted = [[i >= answer - (len(r.ids) - r.context) for i in range(answer)] for r in rows]
    mask = torch.tensor(counted, device=base.device)
    losses = token_losses(logits, targets) * mask
    return losses.sum(1) / mask.sum(1)


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """[batch, length, vocab], [batch, length] -> [batch, length] nats, fp32.

    Flat, because with the classes in the second dimension cross_entropy walks 49,152 strided columns.
    """
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)


def positions_of(valid: Tensor) -> Tensor:
    """[batch, length] bool (left padding False) -> positions that start at 0 with the first valid id."""
    return (valid.long().cumsum(1) - 1).clamp_min(0)


def causal(valid: Tensor) -> Tensor:
    """[batch, length] bool -> [batch, length, length] bool; padding attends to itself, nothing attends to padding."""
    length = valid.shape[1]
    lower = torch.ones(length, length, dtype=torch.bool).tril()
    return (lower & valid[:, None, :]) | torch.eye(length, dtype=torch.bool)


@torch.inference_mode()
def mean_losses(base: LoadedBase, rows: Sequence[Encoded]) -> Tensor:
    """[rows] fp64 answer losses of all rows, in their order, without gradient, on the CPU."""
    losses = torch.empty(len(rows), dtype=torch.float64)
    for batch in batches([len(r.ids) for r in rows], [len(r.ids) - r.context + 1 for r in rows]):
        losses[batch] = answer_losses(base, [rows[i] for i in batch]).double().cpu()
    return losses
