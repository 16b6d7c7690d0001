"""One memory for blocks and adapters: whatever happens, pages hold what their owner thinks and the books balance."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from readapt_api.errors import Terminal
from readapt_runtime.engine.core import Request, SamplingParams, Sequence, Variant
from readapt_runtime.engine.memory import Memory
from readapt_runtime.engine.pool import BLOCK_TOKENS, PageLayout, PagePool
from readapt_runtime.engine.worth import Costs, Evictions, Heat
from readapt_runtime.model.adapter_image import AdapterImage, HostPages
from readapt_testing.tiny_engine import Later

LAYOUT = PageLayout(num_layers=1, num_kv_heads=1, head_dim=1)
PAGES = 9
NAMES = (None, "small", "large", "broken")
SIZES = {"small": 1, "large": 4, "broken": 2}


class Gone(Terminal):
    """The file of an adapter is not there any more."""


def _mark(*what: object) -> float:
    return float(hash(what) % (1 << 20))


def _pool(pages: int = PAGES) -> PagePool:
    pool = PagePool(LAYOUT, pages * LAYOUT.page_bytes(torch.float32), torch.float32, torch.device("cpu"))
    pool.pages.fill_(float("nan"))
    return pool


def _variant(name: str) -> Variant:
    def read() -> HostPages:
        if name == "broken":
            raise Gone(name)
        return HostPages(torch.full((SIZES[name], 1, LAYOUT.elements), _mark("adapter", name)))

    return Variant(name, f"sha256:{'0' * 64}", AdapterImage(({},), 1, SIZES[name], read))


def _sequence(variant: Variant | None, tenant: str, prompt: tuple[int, ...]) -> Sequence:
    return Sequence(Request(prompt, SamplingParams(1), lambda _: None, variant, tenant=tenant), list(prompt))


class MemoryMachine(RuleBasedStateMachine):
    """Sequences over few distinct prompts, so that prefixes meet; every page carries a mark of what it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.later = Later()
        self.memory = Memory(_pool(), Costs(), lambda: self.now, self.later)
        self.running: list[Sequence] = []
        self.variants: dict[str | None, Variant | None] = {}

    @initialize()
    def make_variants(self) -> None:
        self.variants = {name: _variant(name) if name else None for name in NAMES}

    @rule(name=st.sampled_from(NAMES[1:]), spare=st.sets(st.sampled_from(NAMES[1:])), left=st.integers(0, 4))
    def load(self, name: str, spare: set[str], left: int) -> None:
        variant, residency = self.variants[name], self.memory.residency
        kept = [self.variants[other] for other in spare]
        if residency.is_resident(variant) or residency.is_loading(variant):
            return
        if self.memory.can_load(variant, kept, left):
            was_resident = [v for v in kept if residency.is_resident(v)]
            self.memory.load(variant, kept)
            assert all(residency.is_resident(v) for v in was_resident)
            assert self.memory.can_extend(_sequence(None, "", (9,)), left * BLOCK_TOKENS), "what was left can be had"

    @rule(name=st.sampled_from(NAMES[1:]), left=st.integers(0, 4))
    def load_into_free_pages(self, name: str, left: int) -> None:
        variant, residency, pool = self.variants[name], self.memory.residency, self.memory.pool
        if residency.is_resident(variant) or residency.is_loading(variant):
            return
        if pool.can_allocate(variant.image.num_pages + left):
            before = residency.evicted, self.memory.prefixes.idle
            self.memory.load(variant, ())
            assert (residency.evicted, self.memory.prefixes.idle) == before, "nothing went"
            assert pool.num_free >= left

    @precondition(lambda self: self.later.waiting)
    @rule(index=st.integers(0, 3))
    def finish_a_load(self, index: int) -> None:
        self.later.run_one(index)
        failed = self.memory.settle_loads(lambda: ())
        assert all(variant.name == "broken" and isinstance(error, Gone) for variant, error in failed)

    @rule(
        name=st.sampled_from(NAMES),
        tenant=st.sampled_from(["", "other"]),
        begin=st.lists(st.integers(0, 1), min_size=1, max_size=4),
        rest=st.integers(0, BLOCK_TOKENS),
    )
    def start(self, name: str | None, tenant: str, begin: list[int], rest: int) -> None:
        prompt = tuple(token for half in begin for token in [half] * BLOCK_TOKENS) + (7,) * rest
        seq = _sequence(self.variants[name], tenant, prompt)
        if not self.memory.can_start(seq, (), 0):
            return
        self.memory.start(seq, ())
        self.running.append(seq)
        assert seq.computed < len(seq.tokens)
        for index in range(seq.computed // BLOCK_TOKENS):
            assert self._content(seq, index) == self._expected(seq, index), "a prefix of something else was found"
        for index in range(seq.computed // BLOCK_TOKENS, len(prompt) // BLOCK_TOKENS):
            self.memory.pool.pages[seq.kv.pages[index]] = self._expected(seq, index)
        seq.computed = len(seq.tokens)
        self.memory.keep(seq)

    @precondition(lambda self: self.running)
    @rule(index=st.integers(0, 20), count=st.integers(1, 2 * BLOCK_TOKENS))
    def grow(self, index: int, count: int) -> None:
        seq = self.running[index % len(self.running)]
        if not self.memory.can_extend(seq, len(seq.tokens) + count):
            return
        self.memory.extend(seq, len(seq.tokens) + count)
        before = len(seq.tokens) // BLOCK_TOKENS
        seq.tokens += [3] * count
        for block in range(before, len(seq.tokens) // BLOCK_TOKENS):
            self.memory.pool.pages[seq.kv.pages[block]] = self._expected(seq, block)
        seq.computed = len(seq.tokens)
        self.memory.keep(seq)

    @precondition(lambda self: self.running)
    @rule(index=st.integers(0, 20))
    def stop(self, index: int) -> None:
        self.memory.stop(self.running.pop(index % len(self.running)))

    @rule(name=st.sampled_from(NAMES[1:]))
    def replace(self, name: str) -> None:
        old = self.variants[name]
        self.memory.forget(old)
        self.variants[name] = _variant(name)
        if not any(seq.request.variant is old for seq in self.running):
            assert not self.memory.residency.is_resident(old)
            assert self.memory.prefixes.cached(old) == 0

    @rule(seconds=st.floats(0, 100))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def books_balance(self) -> None:
        self.memory.check()

    @invariant()
    def pages_hold_what_their_users_think(self) -> None:
        for seq in self.running:
            for index in range(len(seq.tokens) // BLOCK_TOKENS):
                assert self._content(seq, index) == self._expected(seq, index)
            if seq.adapter is not None:
                pages = self.memory.pool.pages[list(seq.adapter.entry.pages)]
                assert bool((pages == _mark("adapter", seq.request.variant.name)).all())

    def teardown(self) -> None:
        while self.later.waiting:
            self.finish_a_load(0)
        for seq in self.running:
            self.memory.stop(seq)
        self.memory.clear()
        self.memory.check()
        assert self.memory.pool.num_free == PAGES

    def _content(self, seq: Sequence, index: int) -> float:
        return float(self.memory.pool.pages[seq.kv.pages[index]].unique().item())

    def _expected(self, seq: Sequence, index: int) -> float:
        number = seq.request.variant.number if seq.request.variant else 0
        return _mark(number, seq.request.tenant, tuple(seq.tokens[: (index + 1) * BLOCK_TOKENS]))


TestMemoryMachine = MemoryMachine.TestCase
TestMemoryMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_blocks_that_a_sequence_begins_with_do_not_count_as_room_for_it() -> None:
    memory = Memory(_pool(4), Costs(), lambda: 0.0)
    first = _sequence(None, "", (1,) * (3 * BLOCK_TOKENS))
    memory.start(first, ())
    first.computed = len(first.tokens)
    memory.keep(first)
    memory.stop(first)
    assert memory.prefixes.idle == 3
    longer = _sequence(None, "", (1,) * (3 * BLOCK_TOKENS) + (2,) * (BLOCK_TOKENS + 1))
    assert not memory.can_start(longer, (), 0), "three known blocks and two new ones do not fit into four pages"


def test_the_adapter_of_a_sequence_does_not_count_as_room_for_it() -> None:
    memory = Memory(_pool(5), Costs(), lambda: 0.0)
    variant = _variant("large")
    memory.load(variant, ())
    assert memory.can_start(_sequence(variant, "", (1,) * BLOCK_TOKENS), (), 0)
    assert not memory.can_start(_sequence(variant, "", (1,) * (BLOCK_TOKENS + 1)), (), 0)


def test_pages_of_an_adapter_forgotten_while_it_is_loaded_are_not_given_away_before_the_load_has_ended() -> None:
    later = Later()
    memory = Memory(_pool(5), Costs(), lambda: 0.0, later)
    variant = _variant("large")
    memory.load(variant, ())
    memory.forget(variant)
    assert memory.pool.num_free == 1
    later.run_one(0)
    assert memory.settle_loads(lambda: ()) == []
    assert memory.pool.num_free == 5


def test_a_storm_of_evictions_leaves_what_is_used_and_the_books_balance() -> None:
    memory = Memory(_pool(), Costs(), lambda: 0.0)
    used = _sequence(None, "", (99,) * BLOCK_TOKENS)
    memory.start(used, ())
    for number in range(200):  # each pushes out what the ones before left
        variant = _variant(("small", "large")[number % 2])
        memory.load(variant, ())
        seq = _sequence(variant, "", (number,) * (2 * BLOCK_TOKENS))
        memory.start(seq, ())
        seq.computed = len(seq.tokens)
        memory.keep(seq)
        memory.stop(seq)
        memory.check()
    assert memory.residency.evicted > 150
    memory.stop(used)
    memory.clear()
    assert memory.pool.num_free == PAGES


@pytest.mark.parametrize("tokens", [1, BLOCK_TOKENS - 1, BLOCK_TOKENS, BLOCK_TOKENS + 1])
def test_a_sequence_loses_less_than_one_page_to_its_last(tokens: int) -> None:
    memory = Memory(_pool(), Costs(), lambda: 0.0)
    seq = _sequence(None, "", (1,) * tokens)
    memory.start(seq, ())
    held = (PAGES - memory.pool.num_free) * BLOCK_TOKENS
    assert 0 <= held - tokens < BLOCK_TOKENS
    memory.extend(seq, held)
    assert (PAGES - memory.pool.num_free) * BLOCK_TOKENS == held, "the last page is filled before one is taken"


class _Item:
    def __init__(self, seconds: float) -> None:
        self.heat, self.seconds_per_page = Heat(), seconds


def _order(uses: dict[str, tuple[float, list[float]]]) -> list[str]:
    """Names in the order of eviction, of items used at the given times."""
    now = [0.0]
    evictions = Evictions(lambda: now[0], Costs(half_life_s=10))
    items = {name: _Item(seconds) for name, (seconds, _) in uses.items()}
    for at, name in sorted((at, name) for name, (_, times) in uses.items() for at in times):
        now[0] = at
        evictions.touch(items[name])
    for item in items.values():
        evictions.offer(item)
    names = {id(item): name for name, item in items.items()}
    found = []
    while (item := evictions.pop(lambda _: False)) is not None:
        found.append(names[id(item)])
    return found


@pytest.mark.parametrize(
    ("uses", "expected"),
    [
        pytest.param({"new": (1, [50]), "old": (1, [10])}, ["old", "new"], id="recent uses count"),
        pytest.param({"often": (1, [1, 2, 3, 4, 5]), "once": (1, [6])}, ["once", "often"], id="frequent uses count"),
        pytest.param(
            {"dear": (8, [10]), "cheap": (1, [30])}, ["cheap", "dear"], id="2 half-lives make up for a factor of 4"
        ),
        pytest.param({"dear": (2, [10]), "cheap": (1, [30])}, ["dear", "cheap"], id="but not for a factor of 2"),
        pytest.param({"late": (1, [1e7]), "later": (1, [1e7 + 1])}, ["late", "later"], id="times may be large"),
    ],
)
def test_the_least_worth_goes_first(uses: dict[str, tuple[float, list[float]]], expected: list[str]) -> None:
    assert _order(uses) == expected


def test_items_that_come_and_go_do_not_pile_up() -> None:
    evictions = Evictions(lambda: 0.0, Costs())
    items = [_Item(1.0) for _ in range(5)]
    for _ in range(1000):
        for item in items:
            evictions.touch(item)
            evictions.offer(item)
            evictions.withdraw(item)
    assert len(evictions._heap) <= 64
