"""How many threads the work on one matrix at a time gets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_WORTH_SHARING = 4 << 20
"""Elements. Below, a decomposition is hundreds of short parallel regions: two threads on two busy processors took
seven times the processor time of one thread, and thirty times as long."""


@contextmanager
def fitting_threads(elements: int) -> Iterator[None]:
    """One thread within the block when the largest matrix has few ``elements``, else as many as before.

    With one thread the bytes of a result do not depend on the number of processors either.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(before if elements >= _WORTH_SHARING else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
