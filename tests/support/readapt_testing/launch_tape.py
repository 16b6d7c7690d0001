"""A CUDA graph for CPUs: what a step launched is kept, with the tensors it was launched on, and launched again.

The Python that made the launches does not run a second time. So a value that it read from a batch, a tensor that it
made on the host, a launch that it left out would show in what is replayed, as on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import InterpretedFunction

from readapt_runtime.model.accelerator import Compute, InOrder

HOST_OPS = {"aten::lift_fresh", "aten::_local_scalar_dense", "aten::nonzero", "aten::item"}


class HostAccess(AssertionError):
    """A recorded step reached for the host."""


@dataclass
class LaunchTape(InOrder):
    """An accelerator that records by tape; counts what it was asked."""

    recorded: int = 0
    replayed: int = 0
    uploads: int = 0
    forks: int = 0

    def beside(self) -> AbstractContextManager[None]:
        self.forks += 1
        return super().beside()

    def upload(self, host: torch.Tensor, device: torch.Tensor) -> None:
        self.uploads += 1
        super().upload(host, device)

    def record(self, compute: Compute) -> Compute:
        self.recorded += 1
        tape = _Tape()
        with tape, tape.kernels():
            result = compute()

        def replay() -> torch.Tensor:
            self.replayed += 1
            for launch in tape.launches:
                launch()
            return result

        return replay


class NoHostAccess(TorchDispatchMode):
    """Within it, HostAccess is raised for tensors made from Python values and Python values made from tensors."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in HOST_OPS:
            raise HostAccess(f"{func._schema.name} where nothing may reach for the host")
        return func(*args, **(kwargs or {}))


class _Tape(NoHostAccess):
    def __init__(self) -> None:
        super().__init__()
        self.launches: list[Callable[[], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if func._schema.is_mutable:
            self.launches.append(lambda: func(*args, **kwargs))
        elif not _are_views(result, (args, kwargs)):
            self.launches.append(lambda: _put(result, func(*args, **kwargs)))
        return result

    @contextmanager
    def kernels(self) -> Iterator[None]:
        """Keeps Triton's launches too, as launches and not as what the interpreter does for them."""
        run = InterpretedFunction.run

        def keep(kernel: Any, *args: Any, **kwargs: Any) -> None:
            with _disable_current_modes():
                run(kernel, *args, **kwargs)
            self.launches.append(lambda: run(kernel, *args, **kwargs))

        InterpretedFunction.run = keep
        try:
            yield
        finally:
            InterpretedFunction.run = run


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _put(kept: Any, anew: Any) -> None:
    for old, new in zip(_tensors(kept), _tensors(anew), strict=True):
        old.copy_(new)


def _are_views(result: Any, inputs: Any) -> bool:
    known = {tensor.untyped_storage().data_ptr() for tensor in _tensors(inputs)}
    return all(tensor.untyped_storage().data_ptr() in known for tensor in _tensors(result))
