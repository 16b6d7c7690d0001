"""Memory of adapters is used again once nothing refers to it, never before, and little of it is kept."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from readapt_runtime.recycled_memory import RecycledMemory

MIB = 1 << 20


def test_a_region_serves_again_when_its_last_view_is_gone() -> None:
    memory = RecycledMemory(8 * MIB)
    first = memory.allocate(MIB)
    address, view = first.data_ptr(), first.view(torch.bfloat16)[5:].view(-1)
    del first
    assert memory.spare_bytes == 0
    other = memory.allocate(MIB)
    view.fill_(1.0)
    assert other.data_ptr() != address
    del view
    assert memory.spare_bytes == MIB
    assert memory.allocate(MIB - 100).data_ptr() == address


def test_no_more_is_kept_than_was_asked_for() -> None:
    memory = RecycledMemory(3 * MIB)
    held = [memory.allocate(MIB) for _ in range(10)]
    del held
    assert memory.spare_bytes == 3 * MIB
    large = memory.allocate(20 * MIB)
    del large
    assert memory.spare_bytes <= 3 * MIB


@pytest.mark.parametrize("size", [MIB + 1, MIB // 4], ids=["too large", "far too small"])
def test_what_does_not_fit_gets_a_region_of_its_own(size: int) -> None:
    memory = RecycledMemory(8 * MIB)
    spare = memory.allocate(MIB)
    del spare
    found = memory.allocate(size)
    assert len(found) == size
    assert memory.spare_bytes == MIB


def test_threads_never_share_a_region() -> None:
    memory = RecycledMemory(2 * MIB)

    def mark(number: int) -> bool:
        for size in (MIB, MIB - 8, MIB // 2):
            mine = memory.allocate(size).fill_(number)
            if not bool((mine == number).all()):
                return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(mark, range(200)))


def test_nothing_is_a_tensor_too() -> None:
    assert RecycledMemory(0).allocate(0).shape == (0,)
