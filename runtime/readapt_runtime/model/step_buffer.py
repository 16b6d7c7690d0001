"""All metadata of a step in one int32 buffer: fixed fields, on the host and on the device, and one copy between them.

``carve`` makes the same fields of either side's words. Only what a step needs of them is uploaded: a prefix, since
fields that rarely change lie at the end. What an earlier, larger step left behind a field's count is never read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from readapt_kernels.attention.operands import Sequences

_ALIGNMENT = 4  # words: a field begins at 16 bytes, so that one compiled kernel takes all of them


@dataclass(frozen=True, slots=True)
class StepLimits:
    """The most that a step may have."""

    max_tokens: int
    max_rows: int
    max_pages: int
    """Of one sequence."""
    work_words: int
    """Of LoRA's work list."""

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of the fields, in their order."""
        tokens, rows, table = (self.max_tokens,), (self.max_rows,), (self.max_rows, self.max_pages)
        sequences = (rows, rows, rows, table)
        counts = ((1,), (1,), (1,))
        return (*counts, tokens, tokens, tokens, rows, rows, rows, rows, rows, *sequences * 2, (self.work_words,))

    @property
    def num_words(self) -> int:
        return sum(_aligned(math.prod(shape)) for shape in self.shapes)


@dataclass(frozen=True, slots=True)
class StepFields:
    """Views of the words; int32 unless said otherwise."""

    num_tokens: torch.Tensor  # [1]: without padding
    token_ids: torch.Tensor  # [max tokens]
    positions: torch.Tensor  # [max tokens]
    slots: torch.Tensor  # [max tokens]: page * page tokens + place in the page
    sampled: torch.Tensor  # [max rows]: the tokens whose logits are wanted
    random_rows: torch.Tensor  # [max rows]: see Draws, as the three that follow
    temperature: torch.Tensor  # float32 [max rows]
    top_p: torch.Tensor  # float32 [max rows]
    point: torch.Tensor  # float32 [max rows]
    decode: Sequences
    prompts: Sequences
    work: torch.Tensor  # [work words]


def carve(words: torch.Tensor, limits: StepLimits) -> StepFields:
    """Fields of int32 ``[limits.num_words]``."""
    found: list[torch.Tensor] = []
    start = 0
    for shape in limits.shapes:
        size = math.prod(shape)
        found.append(words[start : start + size].view(shape))
        start += _aligned(size)
    num_tokens, num_decode, num_prompts, *rest = found
    token_ids, positions, slots, sampled, random_rows, temperature, top_p, point, *rest = rest
    return StepFields(
        num_tokens=num_tokens,
        token_ids=token_ids,
        positions=positions,
        slots=slots,
        sampled=sampled,
        random_rows=random_rows,
        temperature=temperature.view(torch.float32),
        top_p=top_p.view(torch.float32),
        point=point.view(torch.float32),
        decode=Sequences(num_decode, *rest[:4]),
        prompts=Sequences(num_prompts, *rest[4:8]),
        work=rest[8],
    )


def words_through(field: torch.Tensor, used: int) -> int:
    """How many words of the buffer end with the first ``used`` of a field."""
    return int(field.storage_offset()) + used


def _aligned(words: int) -> int:
    return -(-words // _ALIGNMENT) * _ALIGNMENT
