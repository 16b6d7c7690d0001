"""From a batch to the static buffers of its step.

In: ``Batch``. Out: ``StepShape``, and the device's ``StepFields``, filled by one copy. LoRA's work list is written and
uploaded only when it changed.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

import torch

from readapt_kernels.attention.operands import Sequences
from readapt_runtime.engine.core import Batch, BlockTable
from readapt_runtime.engine.draws import Draws
from readapt_runtime.engine.pool import BLOCK_TOKENS
from readapt_runtime.model.accelerator import Accelerator
from readapt_runtime.model.attention import PlacedRow, by_kind, page_of_tokens, pages_of
from readapt_runtime.model.replay import Buckets, StepShape
from readapt_runtime.model.step_buffer import StepLimits, carve, words_through
from readapt_runtime.model.triton_lora import AdapterPlaces, StepWork


class StepInputs:
    """Owns both sides of the buffer; kernels read the fields of ``device``."""

    def __init__(
        self,
        limits: StepLimits,
        places: AdapterPlaces,
        buckets: Buckets,
        accelerator: Accelerator,
        device: torch.device,
    ) -> None:
        self._buckets, self._accelerator = buckets, accelerator
        self._host_words = accelerator.host_words(limits.num_words)
        self._words = torch.zeros(limits.num_words, dtype=torch.int32, device=device)
        self._host, self.device = carve(self._host_words, limits), carve(self._words, limits)
        self._decode, self._prompts = _Tables(self._host.decode), _Tables(self._host.prompts)
        self._work = StepWork(places, self._host.work)

    def fill(self, batch: Batch) -> StepShape:
        """Writes the batch and uploads it; raises WorkTooLarge."""
        self._accelerator.await_upload()
        decode, prompts = by_kind(batch)
        tokens = len(batch.token_ids)
        if not prompts:
            tokens = self._buckets.pad(tokens)
        self._put_tokens(batch, tokens)
        self._put_draws(batch.draws)
        ends = [self._decode.fill(decode), self._prompts.fill(prompts)]
        step = None
        if batch.segments:
            step, news = self._work.fill(batch.segments, tokens)
            ends.append(words_through(self._host.work, news) if news else 0)
        self._accelerator.upload(self._host_words[: max(ends)], self._words[: max(ends)])
        return StepShape(tokens, bool(decode), bool(prompts), step.tiles if step else None)

    def draws(self, batch: Batch) -> Draws:
        """The batch's, on the device; after ``fill``."""
        count, device = len(batch.draws.rows), self.device
        fields = (device.random_rows, device.temperature, device.top_p, device.point)
        return Draws(batch.draws.num_cut, *(field[:count] for field in fields))

    def _put_tokens(self, batch: Batch, padded: int) -> None:
        host, count = self._host, len(batch.token_ids)
        host.num_tokens.fill_(count)
        host.token_ids[:count] = batch.token_ids
        host.positions[:count] = batch.positions
        host.slots[:count] = page_of_tokens(batch) * BLOCK_TOKENS + batch.positions % BLOCK_TOKENS
        host.sampled[: len(batch.sampled)] = batch.sampled
        host.token_ids[count:padded] = 0
        host.positions[count:padded] = 0

    def _put_draws(self, draws: Draws) -> None:
        host, count = self._host, len(draws.rows)
        host.random_rows[:count] = draws.rows
        host.temperature[:count] = draws.temperature
        host.top_p[:count] = draws.top_p
        host.point[:count] = draws.point


class _Tables:
    """The host's description of some rows; a page table is written where it grew, for tables only grow."""

    def __init__(self, fields: Sequences) -> None:
        self.fields = fields
        self._table = fields.page_table.numpy()
        self._written: list[tuple[BlockTable | None, int]] = [(None, 0)] * fields.max_seqs

    def fill(self, rows: Rows[PlacedRow]) -> int:
        """Writes the rows; through which word of the buffer there is news (counts lie at its head)."""
        fields, count = self.fields, len(rows)
        fields.count.fill_(count)
        fields.query_starts[:count] = torch.tensor([first for first, _ in rows])
        fields.query_lens[:count] = torch.tensor([row.count for _, row in rows])
        fields.context_lens[:count] = torch.tensor([row.start + row.count for _, row in rows])
        for index, (_, row) in enumerate(rows):
            self._put_pages(index, row.seq.kv, pages_of(row))
        return words_through(fields.page_table, count * self._table.shape[1]) if rows else 0

    def _put_pages(self, index: int, owner: BlockTable | None, pages: list[int]) -> None:
        known, written = self._written[index]
        start = written if known is owner else 0
        self._table[index, start : len(pages)] = pages[start:]
        self._written[index] = owner, len(pages)
