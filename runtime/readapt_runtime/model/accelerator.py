"""What the engine needs of the machinery around a GPU's kernels: uploads, side streams, events, recorded launches.

Two implementations: a CUDA GPU, and a CPU (under Triton's interpreter) on which everything happens in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from threading import Lock
from typing import Protocol

import torch

Compute = Callable[[], torch.Tensor]


class Mark(Protocol):
    """A place in the order of what was launched."""

    def wait(self) -> None:
        """Until the device has come past it; only the calling thread waits."""
        ...


class Accelerator(Protocol):
    def host_words(self, count: int) -> torch.Tensor:
        """Zeroed int32 ``[count]`` on the host, from which an upload does not block."""
        ...

    def upload(self, host: torch.Tensor, device: torch.Tensor) -> None:
        """Copies in the order of what is launched; the host's words stay as they are until ``await_upload``."""
        ...

    def await_upload(self) -> None:
        """Waits until the last upload has read the host's words: they may be written again."""
        ...

    def beside(self) -> AbstractContextManager[None]:
        """What is launched within runs after what was launched before, and beside what follows until ``join``."""
        ...

    def join(self) -> None:
        """What follows runs after all that was launched ``beside``."""
        ...

    def mark(self) -> Mark:
        """After all that this thread launched so far."""
        ...

    def aside(self, after: Mark, copy: Callable[[], None]) -> Mark:
        """What ``copy`` launches runs on a stream for copies, once the device is past ``after``; where that ends.

        From any thread; ``copy`` is called now, and one at a time. Steps go on beside it: who uses what it copied waits
        for the mark, or asks a thread that did.
        """
        ...

    def indices(self, values: Sequence[int]) -> torch.Tensor:
        """int64 on the device, in the order of what is launched; the host does not wait for it."""
        ...

    def record(self, compute: Compute) -> Compute:
        """Keeps the launches of ``compute``, to be repeated on the same memory without its Python.

        Repetitions return the same tensor, overwritten. ``compute`` may be run now, more than once.
        """
        ...


class _Past:
    def wait(self) -> None:
        pass


class InOrder:
    """See ``Accelerator``: on a CPU, where a launch is over when it returns, and repeating is computing again."""

    def host_words(self, count: int) -> torch.Tensor:
        return torch.zeros(count, dtype=torch.int32)

    def upload(self, host: torch.Tensor, device: torch.Tensor) -> None:
        device.copy_(host)

    def await_upload(self) -> None:
        pass

    def beside(self) -> AbstractContextManager[None]:
        return nullcontext()

    def join(self) -> None:
        pass

    def mark(self) -> Mark:
        return _Past()

    def aside(self, after: Mark, copy: Callable[[], None]) -> Mark:
        after.wait()
        copy()
        return _Past()

    def indices(self, values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64)

    def record(self, compute: Compute) -> Compute:
        return compute


@dataclass(frozen=True, slots=True)
class _CudaMark:
    event: torch.cuda.Event

    def wait(self) -> None:
        self.event.synchronize()


class Cuda:
    """See ``Accelerator``: streams, events and graphs that share one private memory pool.

    Graphs of one pool are replayed one at a time, and what one returned is used before the next is replayed.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._copying = Lock()
        self._uploaded = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def host_words(self, count: int) -> torch.Tensor:
        return torch.zeros(count, dtype=torch.int32, pin_memory=True)

    def upload(self, host: torch.Tensor, device: torch.Tensor) -> None:
        device.copy_(host, non_blocking=True)
        self._uploaded.record()

    def await_upload(self) -> None:
        self._uploaded.synchronize()

    @contextmanager
    def beside(self) -> Iterator[None]:
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            yield

    def join(self) -> None:
        torch.cuda.current_stream().wait_stream(self._side)

    def mark(self) -> _CudaMark:
        # blocking: a loader that waits sleeps instead of spinning beside the engine's thread
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return _CudaMark(event)

    def aside(self, after: Mark, copy: Callable[[], None]) -> Mark:
        with self._copying, torch.cuda.stream(self._copies):
            if isinstance(after, _CudaMark):
                self._copies.wait_event(after.event)
            else:
                after.wait()
            copy()
            return self.mark()

    def indices(self, values: Sequence[int]) -> torch.Tensor:
        host = torch.tensor(values, dtype=torch.int64, pin_memory=True)
        return host.to(self._device, non_blocking=True)

    def record(self, compute: Compute) -> Compute:
        self._warm_up(compute)
        graph = torch.cuda.CUDAGraph()
        # another thread loads adapters meanwhile: only this one's calls must be fit for a graph
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = compute()

        def replay() -> torch.Tensor:
            graph.replay()
            return result

        return replay

    def _warm_up(self, compute: Compute) -> None:
        """Kernels are compiled and libraries take their workspaces outside the graph."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            compute()
        torch.cuda.current_stream().wait_stream(stream)


def accelerator_of(device: torch.device) -> Accelerator:
    return Cuda(device) if device.type == "cuda" else InOrder()
