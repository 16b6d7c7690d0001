"""What a step needs of the machinery around a GPU's kernels: uploads, a side stream, recorded launches.

Two implementations: a CUDA GPU, and a CPU (under Triton's interpreter) on which everything happens in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import torch

Compute = Callable[[], torch.Tensor]


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

    def record(self, compute: Compute) -> Compute:
        """Keeps the launches of ``compute``, to be repeated on the same memory without its Python.

        Repetitions return the same tensor, overwritten. ``compute`` may be run now, more than once.
        """
        ...


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

    def record(self, compute: Compute) -> Compute:
        return compute


class Cuda:
    """See ``Accelerator``: streams, an event and graphs that share one private memory pool.

    Graphs of one pool are replayed one at a time, and what one returned is used before the next is replayed.
    """

    def __init__(self, device: torch.device) -> None:
        self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
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
