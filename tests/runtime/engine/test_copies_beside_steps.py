"""Adapters are copied beside the steps: after those that used their pages, and resident only once they are there."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from readapt_runtime.engine.limits import EngineLimits
from readapt_runtime.engine.pool import PageKind, PageLayout, PageOrder, PagePool
from readapt_testing.tiny_engine import Tiny, ask, run_to_idle
from readapt_testing.two_streams import Lagging, TwoStreams

LAYOUT = PageLayout(num_layers=2, num_kv_heads=1, head_dim=2)


def test_pages_of_a_step_under_way_are_not_overwritten_before_it_ends(tiny: Tiny) -> None:
    """A prompt is cancelled while its first stretch runs, and an adapter gets the pages that the step still writes."""
    device = TwoStreams(early=True)
    variant = tiny.variant("r8")
    pages = variant.image.num_pages + 1
    engine = tiny.engine(pages, EngineLimits(max_batch_tokens=32), max_model_len=1024, accelerator=device)
    engine._model = Lagging(engine, device)
    prompt, _ = ask(engine, [7] * (16 * pages - 8), max_tokens=1)
    engine.step()
    engine.cancel(prompt)

    _, answer = ask(engine, [1, 2, 3], variant, max_tokens=6)
    run_to_idle(engine)

    tiny.oracle.assert_greedy(tiny.adapters["r8"], [1, 2, 3], answer.tokens, 6)


def test_an_adapter_is_used_once_its_copy_has_ended(tiny: Tiny) -> None:
    """Until then its pages hold NaN."""
    engine = tiny.engine(accelerator=TwoStreams(early=False))
    _, answer = ask(engine, [1, 2, 3], tiny.variant("r8"), max_tokens=6)
    run_to_idle(engine)

    tiny.oracle.assert_greedy(tiny.adapters["r8"], [1, 2, 3], answer.tokens, 6)


def test_decoding_goes_on_while_a_copy_runs(tiny: Tiny) -> None:
    device, copying, go_on = TwoStreams(early=False), Event(), Event()

    def hold() -> None:
        copying.set()
        assert go_on.wait(30)

    device.before_copies = hold
    variant = tiny.variant("r8")
    with ThreadPoolExecutor(1) as executor:
        engine = tiny.engine(accelerator=device, executor=executor)
        _, base = ask(engine, [60, 61], max_tokens=20)
        _, waits = ask(engine, [1, 2, 3], variant, max_tokens=6)
        engine.step()
        assert copying.wait(30)
        for _ in range(5):
            assert engine.step()
        assert len(base.tokens) == 6
        assert not waits.events
        assert engine.memory.residency.is_loading(variant)
        go_on.set()
    run_to_idle(engine)

    tiny.oracle.assert_greedy(tiny.adapters["r8"], [1, 2, 3], waits.tokens, 6)


class Launches(TorchDispatchMode):
    """Counts operations that write into memory that was there."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.is_mutable:
            self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("taken", "launches"),
    [(0, ["aten::copy_"]), (40, ["aten::copy_", "aten::index_copy_"] * 3)],
    ids=["neighbours", "scattered"],
)
def test_forty_pages_are_a_few_launches_for_a_gpu_wherever_they_lie(taken: int, launches: list[str]) -> None:
    size = 80 * LAYOUT.page_bytes(torch.float32)
    pool = PagePool(LAYOUT, size, torch.float32, torch.device("cpu"), PageOrder.PAGE_MAJOR)
    pool.pages.fill_(float("nan"))
    singles = [pool.allocate(PageKind.KV, 1) for _ in range(2 * taken)]
    for single in singles[::2]:
        pool.release(single)
    entry = pool.allocate(PageKind.ADAPTER, 40)
    assert entry.consecutive == (taken == 0)
    image = torch.randn(40, 2, LAYOUT.elements, generator=torch.Generator().manual_seed(0))
    with Launches() as seen:
        pool.write(entry, image)

    assert seen.names == launches
    assert torch.equal(pool.pages[list(entry.pages)], image)
    assert int(pool.pages.isnan().flatten(1).all(dim=1).sum()) == 40
