"""Greedy completions: at each step the likeliest token, until the token that ends an answer or the limit.

Prompts are padded on the left and share one key-value cache per batch. Equals transformers' ``generate`` without
sampling (see the tests), less whatever a model's own generation config would add to it (penalties, forced tokens):
serving does not apply it either.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from readapt_runtime.adapt.base import LoadedBase
from readapt_runtime.adapt.tokens import batches, joint_ids, positions_of


@torch.inference_mode()
def complete(base: LoadedBase, prompts: Sequence[str], limit: int) -> list[str]:
    """The completion of each prompt in at most ``limit`` tokens, for whatever is attached to the base now.

    A completion that has not ended by then is cut. It brings its own leading space, so that prompt + completion is the
    text that was meant.
    """
    room = max(1, base.max_tokens - limit)
    contexts = [row[-room:] or [base.start] for row in joint_ids(base, prompts)]
    texts = [""] * len(prompts)
    for batch in batches([len(row) for row in contexts], [1] * len(contexts)):
        rows = [contexts[i] for i in batch]
        for index, answer in zip(batch, _continue(base, rows, limit), strict=True):
            texts[index] = _text(base, contexts[index], answer)
    return texts


def _continue(base: LoadedBase, rows: Sequence[list[int]], limit: int) -> list[list[int]]:
    """Ids after each row, without the one that ends an answer."""
    longest = max(map(len, rows))
    device = base.device
    tokens = torch.tensor([[0] * (longest - len(row)) + row for row in rows], device=device)
    valid = torch.tensor([[False] * (longest - len(row)) + [True] * len(row) for row in rows], device=device)
    positions, cache = positions_of(valid), None
    alive, drawn = torch.ones(len(rows), dtype=torch.bool, device=device), []
    for _ in range(limit):
        output = base.model(
            input_ids=tokens,
            attention_mask=valid.long(),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        tokens, cache = _likeliest(output.logits[:, -1]), output.past_key_values
        alive &= tokens[:, 0] != base.eos
        if not alive.any():
            break
        drawn.append(tokens.masked_fill(~alive[:, None], base.eos))
        valid, positions = torch.cat([valid, valid[:, -1:]], dim=1), positions[:, -1:] + 1
    answers = torch.cat(drawn, dim=1).tolist() if drawn else [[] for _ in rows]
    return [answer[: answer.index(base.eos)] if base.eos in answer else answer for answer in answers]


def _likeliest(logits: Tensor) -> Tensor:
    """[rows, vocab] -> [rows, 1]; of equal ones the first."""
    return logits.float().argmax(-1, keepdim=True)


def _text(base: LoadedBase, context: list[int], answer: list[int]) -> str:
    """What the answer adds to the prompt; alone some tokenizers would drop its leading space."""
    before = str(base.tokenizer.decode(context, skip_special_tokens=True))
    whole = str(base.tokenizer.decode([*context, *answer], skip_special_tokens=True))
    if whole.startswith(before):
        return whole[len(before) :]
    return str(base.tokenizer.decode(answer, skip_special_tokens=True))
