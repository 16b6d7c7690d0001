"""Whose words a work list has: those of the adapters that are resident now, on the pages that they have now."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from weakref import ref

import pytest
import torch

from readapt_kernels.lora.records import HEAD_WORDS, RANK, linear_words
from readapt_runtime.engine.core import ResidentAdapter, Segment, Variant
from readapt_runtime.engine.pool import PageKind, PageLayout, PageOrder, PagePool
from readapt_runtime.model.config import Linear
from readapt_runtime.model.triton_lora import AdapterPlaces, StepWork
from readapt_testing.tiny_engine import Tiny


@dataclass
class Served:
    """A pool of adapters and the work list of its steps."""

    tiny: Tiny

    def __post_init__(self) -> None:
        layout = PageLayout.of(self.tiny.config)
        size = 64 * layout.page_bytes(torch.float32)
        self.pool = PagePool(layout, size, torch.float32, torch.device("cpu"), PageOrder.PAGE_MAJOR)
        self.places = AdapterPlaces(self.tiny.config, self.pool, max_tokens=64, max_rows=8, max_rank=64)
        self.host = torch.zeros(self.places.layout.num_words, dtype=torch.int32)
        self.work = StepWork(self.places, self.host)

    def resident(self, variant: Variant) -> ResidentAdapter:
        return ResidentAdapter(variant, self.pool.allocate(PageKind.ADAPTER, variant.image.num_pages), None)

    def words(self, slot: int) -> tuple[list[int], list[int]]:
        """The pages that kernels read for a slot, and the rank of its first module in q, k and v, layer by layer."""
        layout, words = self.places.layout, self.host.tolist()
        pages = words[layout.tables + slot * layout.limits.max_pages :][: layout.limits.max_pages]
        layers = words[layout.layers + slot * layout.shapes.num_layers :][: layout.shapes.num_layers]
        first = list(self.tiny.config.linears).index(Linear.QKV) * linear_words(layout.shapes) + HEAD_WORDS
        return pages, [words[layout.directories + at + first + RANK] for at in layers]


@pytest.fixture
def served(tiny: Tiny) -> Served:
    return Served(tiny)


def test_an_adapter_that_takes_the_pages_of_another_has_words_of_its_own(served: Served) -> None:
    old = served.resident(served.tiny.variant("r8"))
    served.work.fill((Segment(old, 0, 1),), 1)
    before = served.words(0)
    served.pool.release(old.entry)
    new = served.resident(served.tiny.variant("r4"))
    assert set(new.entry.pages) < set(old.entry.pages)

    assert served.work.fill((Segment(new, 0, 1),), 1)[1]

    for adapter, rank, (pages, ranks) in ((old, 8, before), (new, 4, served.words(0))):
        assert tuple(pages[: len(adapter.entry.pages)]) == adapter.entry.pages
        assert not any(pages[len(adapter.entry.pages) :])
        assert ranks == [rank] * served.tiny.config.num_layers


def test_a_variant_that_comes_back_to_other_pages_is_read_there(served: Served) -> None:
    variant = served.tiny.variant("r8")
    old = served.resident(variant)
    served.work.fill((Segment(old, 0, 1),), 1)
    new = served.resident(variant)  # while the old one is still there, as after a replacement

    assert served.work.fill((Segment(new, 0, 1),), 1)[1]

    assert tuple(served.words(0)[0][: len(new.entry.pages)]) == new.entry.pages


def test_the_same_batch_is_no_news_and_another_one_is(served: Served) -> None:
    a, b = (served.resident(served.tiny.variant(name)) for name in ("r4", "r8"))
    batch = (Segment(a, 0, 1), Segment(b, 1, 3))
    step, news = served.work.fill(batch, 4)
    assert news == step.used

    assert served.work.fill(tuple(Segment(s.adapter, s.start, s.stop) for s in batch), 4) == (step, 0)
    others = [(batch, 8), ((Segment(a, 0, 2), Segment(b, 2, 3)), 8), ((Segment(b, 0, 2), Segment(a, 2, 3)), 8)]
    assert all(served.work.fill(*other)[1] for other in others)


def test_words_go_with_the_adapter_though_the_last_step_had_it(served: Served) -> None:
    adapter = served.resident(served.tiny.variant("r4"))
    served.work.fill((Segment(adapter, 0, 1),), 1)
    gone = ref(adapter)

    del adapter
    gc.collect()

    assert gone() is None
