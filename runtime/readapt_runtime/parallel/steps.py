"""One step as a run of int32 words: what rank 0 tells the workers before each forward pass.

    lengths of the six parts | token ids | row, row, … | segment, … | sampled tokens
        | placed adapter, … | adapters that left the pool
    row: start, tokens, pages, page, …     segment: adapter, first token, end     placed: adapter, image, pages, page, …

Adapters and images are known by numbers. Where an adapter lies is told with the first step that uses it; whoever owns
those pages at rank 0 next overwrites them here too. Nothing else of rank 0's book-keeping is repeated: neither its
free list nor its queues.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, count, islice
from queue import Empty, SimpleQueue

import numpy as np
import torch

from readapt_runtime.engine.core import (
    Batch,
    BlockTable,
    Request,
    ResidentAdapter,
    Row,
    SamplingParams,
    Segment,
    Variant,
)
from readapt_runtime.engine.core import Sequence as Seq
from readapt_runtime.engine.draws import Draws
from readapt_runtime.engine.pool import Entry, PageKind, PagePool, kv_pages
from readapt_runtime.model.adapter_image import AdapterImage, Shares
from readapt_runtime.model.attention import pages_of

_NO_DIGEST = f"sha256:{'0' * 64}"
_NOBODY = Request((), SamplingParams(max_tokens=1), emit=lambda event: None)


class StepWriter:
    """Rank 0's side; used by one thread."""

    def __init__(self) -> None:
        self._numbers: weakref.WeakKeyDictionary[ResidentAdapter, int] = weakref.WeakKeyDictionary()
        self._next = count()
        # filled by finalizers, which run wherever the last reference goes: this queue may be entered from anywhere
        self._gone: SimpleQueue[int] = SimpleQueue()
        self._placing: list[Shares] = []
        """What the workers need for the step that was written last: with the next one they have copied it."""

    def write(self, batch: Batch) -> bytes:
        """Of what is on the host alone: nothing here waits for a device."""
        self._placing.clear()
        placed = [self._place(s.adapter) for s in batch.segments if s.adapter not in self._numbers]
        ends = accumulate(row.count for row in batch.rows)
        parts = (
            [token for row in batch.rows for token in row.seq.tokens[row.start : row.start + row.count]],
            [word for row in batch.rows for word in _row(row)],
            [word for s in batch.segments for word in (self._numbers[s.adapter], s.start, s.stop)],
            [end - 1 for row, end in zip(batch.rows, ends, strict=True) if row.samples],
            [word for words in placed for word in words],
            _drain(self._gone),
        )
        words = [*map(len, parts), *(word for part in parts for word in part)]
        return np.array(words, dtype=np.int32).tobytes()

    def _place(self, adapter: ResidentAdapter) -> Sequence[int]:
        if adapter.shares is None:
            raise RuntimeError(f"the workers have no shares of {adapter.variant.name}")
        shares, adapter.shares = adapter.shares, None
        self._placing.append(shares)
        number = self._numbers[adapter] = next(self._next)
        weakref.finalize(adapter, self._gone.put, number)
        pages = adapter.entry.pages
        return number, shares.number, len(pages), *pages


def _row(row: Row) -> Sequence[int]:
    pages = pages_of(row)[: kv_pages(row.start + row.count)]
    return row.start, row.count, len(pages), *pages


def _drain(queue: SimpleQueue[int]) -> list[int]:
    found = []
    try:
        while True:
            found.append(queue.get_nowait())
    except Empty:
        return found


class StepReader:
    """A worker's side: keeps its pool as rank 0's, and makes the batch for its decoder."""

    def __init__(self, pool: PagePool, images: Mapping[int, AdapterImage]) -> None:
        """``images``: this rank's shares by number; they arrive by another way, before any step names them."""
        self._pool, self._images = pool, images
        self._adapters: dict[int, ResidentAdapter] = {}
        self._tables: Mapping[tuple[int, ...], BlockTable] = {}

    def read(self, message: bytes) -> Batch:
        words = np.frombuffer(message, dtype=np.int32).tolist()
        source = iter(words)
        lengths = _take(source, 6)
        ids, rows, segments, sampled, placed, gone = (_take(source, n) for n in lengths)
        self._place(placed)
        for number in gone:
            del self._adapters[number]
        found = self._rows(rows)
        positions = [at for row in found for at in range(row.start, row.start + row.count)]
        return Batch(
            rows=found,
            segments=self._segments(segments),
            token_ids=self._tensor(ids),
            positions=self._tensor(positions),
            sampled=self._tensor(sampled),
            draws=Draws.of(()),  # rank 0 alone picks tokens
        )

    def _tensor(self, values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64)

    def _rows(self, words: list[int]) -> tuple[Row, ...]:
        rows: list[Row] = []
        tables: dict[tuple[int, ...], BlockTable] = {}
        source = iter(words)
        for start in source:
            tokens, length = _take(source, 2)
            pages = tuple(_take(source, length))
            # the same object for the same pages: backends keep theirs while tables stay the same
            table = tables[pages] = self._tables.get(pages) or BlockTable([], list(pages), 0)
            rows.append(Row(Seq(_NOBODY, [], kv=table), start, tokens))
        self._tables = tables
        return tuple(rows)

    def _segments(self, words: list[int]) -> tuple[Segment, ...]:
        source = iter(words)
        return tuple(Segment(self._adapters[number], *_take(source, 2)) for number in source)

    def _place(self, words: list[int]) -> None:
        source = iter(words)
        for number in source:
            image_number, length = _take(source, 2)
            image = self._images[image_number]
            entry = Entry(PageKind.ADAPTER, tuple(_take(source, length)))
            own = Entry(entry.kind, entry.pages[: image.num_pages])
            self._pool.write(own, image.read().here)
            self._adapters[number] = ResidentAdapter(Variant(f"image {image_number}", _NO_DIGEST, image), entry, None)


def _take(source: Iterator[int], length: int) -> list[int]:
    return list(islice(source, length))
