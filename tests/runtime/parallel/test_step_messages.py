"""What rank 0 tells of a step is what a worker computes, and a worker's pool follows rank 0's."""

from __future__ import annotations

import gc
import threading
from weakref import ref

import pytest
import torch

from readapt_runtime.engine.core import (
    Batch,
    BlockTable,
    Request,
    ResidentAdapter,
    Row,
    SamplingParams,
    Sequence,
    Variant,
)
from readapt_runtime.engine.pool import Entry, PageKind, PageLayout, PagePool
from readapt_runtime.model.adapter_image import AdapterImage, HostPages, Shares
from readapt_runtime.parallel.steps import StepReader, StepWriter
from readapt_runtime.parallel.worker import Gone, Held

CPU = torch.device("cpu")
LAYOUT = PageLayout(num_layers=2, num_kv_heads=1, head_dim=4)


@pytest.fixture
def pool() -> PagePool:
    """A worker's pool of 12 pages, whatever was in it before."""
    made = PagePool(LAYOUT, 12 * LAYOUT.page_bytes(torch.float32), torch.float32, CPU)
    made.pages.fill_(float("nan"))
    return made


def _image(number: int) -> AdapterImage:
    pages = HostPages(torch.full((2, 2, LAYOUT.elements), float(number)))
    return AdapterImage(({}, {}), 4, len(pages.here), lambda: pages)


def _adapter(number: int, *pages: int) -> ResidentAdapter:
    """Resident on rank 0; its image is number ``number``."""
    entry = Entry(PageKind.ADAPTER, pages)
    return ResidentAdapter(Variant("a", f"sha256:{'0' * 64}", _image(-1)), entry, None, Shares(number))


def _sequence(tokens: list[int], pages: tuple[int, ...], adapter: ResidentAdapter | None = None) -> Sequence:
    request = Request(tuple(tokens), SamplingParams(max_tokens=8), emit=lambda event: None)
    return Sequence(request, tokens, kv=BlockTable([], list(pages), 0), adapter=adapter)


def _told(batch: Batch) -> dict[str, object]:
    return {
        "tokens": batch.token_ids.tolist(),
        "positions": batch.positions.tolist(),
        "sampled": batch.sampled.tolist(),
        "rows": [(r.start, r.count) for r in batch.rows],
        "segments": [(s.start, s.stop) for s in batch.segments],
    }


def test_a_mixed_step_arrives_as_it_was_sent(pool: PagePool) -> None:
    adapter = _adapter(5, 10, 11)
    prompt = _sequence(list(range(40)), (2, 7, 4, 9))
    decoding = _sequence(list(range(90, 108)), (1, 3), adapter)
    batch = Batch.of([Row(prompt, 16, 20), Row(decoding, 17, 1)])
    found = StepReader(pool, {5: _image(5)}).read(StepWriter().write(batch))
    assert _told(found) == _told(batch)
    assert [r.seq.kv.pages for r in found.rows if r.seq.kv] == [[2, 7, 4], [1, 3]]  # up to the last token of the step
    assert found.segments[0].adapter.entry.pages == (10, 11)


def test_an_adapter_is_placed_with_the_first_step_that_uses_it_and_again_after_it_was_evicted(pool: PagePool) -> None:
    images = {5: _image(5)}
    reader, writer = StepReader(pool, images), StepWriter()
    adapter = _adapter(5, 3, 8)
    moved = ResidentAdapter(adapter.variant, Entry(PageKind.ADAPTER, (6, 4)), None, adapter.shares)

    def step(of: ResidentAdapter) -> Batch:
        sequence = _sequence([1, 2, 3], (1,), of)
        return reader.read(writer.write(Batch.of([Row(sequence, 0, 3)])))

    first = step(adapter).segments[0].adapter
    assert pool.pages[[3, 8]].eq(5).all()
    pool.pages[3] = 7  # nobody copies it again
    assert step(adapter).segments[0].adapter is first
    assert pool.pages[3].eq(7).all()
    assert step(moved).segments[0].adapter is not first
    assert pool.pages[[6, 4]].eq(5).all()


def test_shares_are_held_until_the_step_that_places_them_is_followed_by_another() -> None:
    """With the answer to the next step, if not before, every worker has copied them."""
    writer, adapter = StepWriter(), _adapter(5, 3, 8)
    shares = ref(adapter.shares)
    writer.write(Batch.of([Row(_sequence([1, 2, 3], (1,), adapter), 0, 3)]))
    gc.collect()
    assert shares() is not None
    writer.write(Batch.of([Row(_sequence([1], (1,)), 0, 1)]))
    gc.collect()
    assert shares() is None


def test_a_worker_lets_go_of_an_image_when_the_steps_that_may_name_it_were_read() -> None:
    held = Held()
    held.images[5] = _image(5)
    dropping = threading.Thread(target=held.drop, args=(Gone((5,), after_step=2),))
    dropping.start()
    held.step_read()
    assert list(held.images) == [5]
    held.step_read()
    dropping.join(60)
    assert held.images == {}


def test_an_adapter_that_the_workers_never_got_is_a_bug(pool: PagePool) -> None:
    image = _image(1)
    stray = ResidentAdapter(Variant("a", f"sha256:{'0' * 64}", image), Entry(PageKind.ADAPTER, (3,)), None)
    with pytest.raises(RuntimeError, match="no shares of a"):
        StepWriter().write(Batch.of([Row(_sequence([1], (1,), stray), 0, 1)]))
