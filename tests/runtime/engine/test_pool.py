"""The page pool keeps its books whatever is asked of it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from readapt_runtime.engine.pool import (
    BLOCK_TOKENS,
    Entry,
    PageKind,
    PageLayout,
    PageOrder,
    PagePool,
    PoolCorrupt,
    PoolExhausted,
    PoolTooSmall,
    kv_pages,
)
from readapt_testing.huge_pages import huge_bytes_at, huge_pages, refused

LAYOUT = PageLayout(num_layers=2, num_kv_heads=1, head_dim=2)
PAGES = 13
HUGE_PAGE = 2 << 20


def _pool(order: PageOrder = PageOrder.LAYER_MAJOR, pages: int = PAGES) -> PagePool:
    size = pages * LAYOUT.page_bytes(torch.float32)
    return PagePool(LAYOUT, size, torch.float32, torch.device("cpu"), order)


class PoolMachine(RuleBasedStateMachine):
    """Random allocations and releases; each entry's pages carry its mark until it is released."""

    entries = Bundle("entries")

    def __init__(self) -> None:
        super().__init__()
        self.pool = _pool()
        self.pool.pages.fill_(float("nan"))
        self.marks: dict[Entry, float] = {}

    @rule(target=entries, kind=st.sampled_from(PageKind), count=st.integers(0, PAGES + 2))
    def allocate(self, kind: PageKind, count: int) -> Entry | None:
        if count > self.pool.num_free:
            with pytest.raises(PoolExhausted):
                self.pool.allocate(kind, count)
            return None
        entry = self.pool.allocate(kind, count)
        assert len(entry.pages) == count
        mark = float(len(self.marks) + 1)
        for page in entry.pages:
            self.pool.pages[page] = mark
        self.marks[entry] = mark
        return entry

    @rule(entry=consumes(entries))
    def release(self, entry: Entry | None) -> None:
        if entry is None:
            return
        layers = [self.pool.flat(entry, layer) for layer in range(LAYOUT.num_layers)] if entry.pages else []
        assert all(bool((layer == self.marks[entry]).all()) for layer in layers)
        self.pool.release(entry)
        del self.marks[entry]
        with pytest.raises(PoolCorrupt):
            self.pool.release(entry)

    @invariant()
    def books_balance(self) -> None:
        self.pool.check()
        used = self.pool.pages_used(PageKind.KV) + self.pool.pages_used(PageKind.ADAPTER)
        assert used + self.pool.num_free == PAGES
        assert used == sum(len(entry.pages) for entry in self.marks)


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)


def test_a_run_of_neighbours_is_preferred() -> None:
    pool = _pool()
    singles = [pool.allocate(PageKind.KV, 1) for _ in range(6)]
    pool.release(singles[0])
    pool.release(singles[2])
    assert pool.allocate(PageKind.ADAPTER, 4).consecutive
    assert not pool.allocate(PageKind.ADAPTER, 4).consecutive


@pytest.mark.parametrize("order", list(PageOrder), ids=str)
def test_kv_and_flat_views_see_the_same_page(order: PageOrder) -> None:
    pool = _pool(order)
    pool.pages.fill_(float("nan"))
    entry = pool.allocate(PageKind.KV, 2)
    block = torch.arange(2 * BLOCK_TOKENS * 2, dtype=torch.float32).view(2, BLOCK_TOKENS, 1, 2)
    for side, values in zip(pool.kv(1), block, strict=True):
        side[entry.pages[1]] = values
    flat = pool.flat(entry, 1)[LAYOUT.elements :].view(2, -1)
    keys = block[0] if order is PageOrder.PAGE_MAJOR else block[0].permute(1, 2, 0)
    assert torch.equal(flat, torch.stack((keys.flatten(), block[1].flatten())))
    assert pool.flat(entry, 0).isnan().all()


def test_a_corrupt_book_is_noticed() -> None:
    pool = _pool()
    entry = pool.allocate(PageKind.KV, 3)
    entry.pages = entry.pages[:2]
    with pytest.raises(PoolCorrupt):
        pool.check()


def test_memory_for_less_than_a_page_is_refused() -> None:
    with pytest.raises(PoolTooSmall):
        PagePool(LAYOUT, LAYOUT.page_bytes(torch.float32) - 1, torch.float32, torch.device("cpu"))


@pytest.mark.skipif(huge_pages() == "never", reason="the kernel gives no huge pages")
def test_pages_of_a_cpu_lie_in_huge_pages_and_take_memory_only_when_touched() -> None:
    """As the kernel counts them, unless it says that it had none left."""
    layout, before, few = PageLayout(num_layers=4, num_kv_heads=4, head_dim=64), refused(), 256
    pool = PagePool(layout, 1 << 30, torch.bfloat16, torch.device("cpu"))
    had = huge_bytes_at(pool.pages.data_ptr())  # neighbours may be in the same mapping
    pool.pages[:few] = 1.0
    touched = few * layout.page_bytes(torch.bfloat16)
    rounded = touched + layout.num_layers * 2 * HUGE_PAGE
    assert touched // 2 <= huge_bytes_at(pool.pages.data_ptr()) - had <= rounded or refused() > before


@pytest.mark.parametrize(("tokens", "pages"), [(0, 0), (1, 1), (16, 1), (17, 2)])
def test_pages_for_tokens(tokens: int, pages: int) -> None:
    assert kv_pages(tokens) == pages
