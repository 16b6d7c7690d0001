"""A device with two streams for CPUs: steps lag behind the host, copies run as early or as late as they are allowed to.

So an order that nobody asked for is not kept, as on a GPU: a copy that does not wait for the steps before it is
overtaken by their writes, and pages that nobody waited for hold what they held before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from readapt_runtime.engine.core import Batch
from readapt_runtime.model.accelerator import InOrder, Mark
from readapt_runtime.model.attention import pages_of

if TYPE_CHECKING:
    from readapt_runtime.engine.engine import Engine, Model


@dataclass(frozen=True)
class _Place:
    """After the first ``launched`` of the compute stream."""

    device: TwoStreams
    launched: int

    def wait(self) -> None:
        self.device.compute_until(self.launched)


@dataclass(eq=False)
class _Copying:
    device: TwoStreams
    after: int
    copy: Callable[[], None]

    def wait(self) -> None:
        self.device.copy_until(self)


class TwoStreams(InOrder):
    """``early``: copies run as soon as what they wait for is over; else when somebody waits for them."""

    def __init__(self, early: bool) -> None:
        self._early = early
        self._steps: deque[Callable[[], None]] = deque()
        self._copies: deque[_Copying] = deque()
        self._launched = 0
        self.before_copies: Callable[[], None] = lambda: None
        """Called by who waits for a copy, before it runs."""

    def launch(self, work: Callable[[], None]) -> None:
        """On the compute stream."""
        self._launched += 1
        self._steps.append(work)

    def mark(self) -> Mark:
        return _Place(self, self._launched)

    def aside(self, after: Mark, copy: Callable[[], None]) -> Mark:
        assert isinstance(after, _Place)
        copying = _Copying(self, after.launched, copy)
        self._copies.append(copying)
        self._run_early()
        return copying

    def compute_until(self, launched: int) -> None:
        while self._launched - len(self._steps) < launched:
            self._steps.popleft()()
            self._run_early()

    def drain(self) -> None:
        """The host waits for the compute stream."""
        self.compute_until(self._launched)

    def copy_until(self, last: _Copying) -> None:
        self.before_copies()
        while last in self._copies:
            self.compute_until(self._copies[0].after)
            if self._copies:
                self._copies.popleft().copy()

    def _run_early(self) -> None:
        over = self._launched - len(self._steps)
        while self._early and self._copies and self._copies[0].after <= over:
            self._copies.popleft().copy()


class Lagging:
    """See ``engine.Model``: what a step without sampled rows writes lands when the device comes to it.

    Nobody reads anything of such a step, so that the engine goes on while it runs.
    """

    def __init__(self, engine: Engine, device: TwoStreams) -> None:
        self._model: Model = engine._model
        self._pages, self._device = engine.pool.pages, device

    def forward(self, batch: Batch) -> torch.Tensor:
        self._device.drain()
        if len(batch.sampled):
            return self._model.forward(batch)
        written = sorted({page for row in batch.rows for page in pages_of(row)})
        before = self._pages[written]
        logits = self._model.forward(batch)
        after = self._pages[written]
        self._pages[written] = before
        self._device.launch(lambda: self._pages.index_copy_(0, torch.tensor(written), after))
        return logits

    def pick(self, batch: Batch, logits: torch.Tensor) -> torch.Tensor:
        return self._model.pick(batch, logits)
