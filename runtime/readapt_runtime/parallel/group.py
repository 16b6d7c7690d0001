"""The ranks' exchange of tensors: gloo between CPUs, NCCL between GPUs.

Groups are objects of their own rather than torch's default group: nothing global, so that one process can have
several, and gloo listens on loopback only. The rendezvous is a file. A rank that dies ends a collective on the others
at once, one that hangs after the time-out (between GPUs by NCCL's watchdog, which ends the process).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch.distributed import FileStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import ProcessGroup

from readapt_runtime.model.shard import Shard

_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where the ranks find each other: ``file`` on a disk they share, and how long one waits for another."""

    file: Path
    timeout_s: float


class Group:
    """Collectives, made by every rank at once. Raises RuntimeError (torch's) when another rank does not answer."""

    def __init__(self, shard: Shard, device: torch.device, meeting: Meeting) -> None:
        self._shard = shard
        self._group = _connect(shard, device, meeting)
        everyone = self.sum(torch.ones(1, device=device))  # NCCL connects with the first collective
        if int(everyone) != shard.world:
            raise RuntimeError(f"{int(everyone)} ranks answered, not {shard.world}")

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """See ``Exchange``."""
        self._group.allreduce(x).wait()
        return x

    def join(self, logits: torch.Tensor) -> torch.Tensor:
        """See ``Exchange``."""
        rows, size = logits.shape
        if rows == 0:
            return logits.new_empty(0, self._shard.whole.vocab_size)
        parts = logits.new_empty(self._shard.world, rows, size) if self._shard.rank == 0 else None
        self._group.gather([] if parts is None else list(parts.unbind(0)), logits, 0).wait()
        if parts is None:
            return logits
        return parts.transpose(0, 1).flatten(1)[:, : self._shard.whole.vocab_size].contiguous()

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """Vectors ``[n]`` of all ranks on every rank, ``[world, n]``."""
        parts = x.new_empty(self._shard.world, len(x))
        self._group.allgather(list(parts.unbind(0)), x).wait()
        return parts


def _connect(shard: Shard, device: torch.device, meeting: Meeting) -> ProcessGroup:
    store = FileStore(str(meeting.file), shard.world)
    timeout = timedelta(seconds=meeting.timeout_s)
    store.set_timeout(timeout)
    group = ProcessGroup(store, shard.rank, shard.world)
    make, kind = (_nccl, "NCCL") if device.type == "cuda" else (_gloo, "GLOO")
    backend_type = ProcessGroup.BackendType.__members__[kind]
    group._set_default_backend(backend_type)
    group._register_backend(device, backend_type, make(store, shard, timeout))
    return group


def _gloo(store: FileStore, shard: Shard, timeout: timedelta) -> Any:
    from torch.distributed.distributed_c10d import ProcessGroupGloo

    options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._devices = [ProcessGroupGloo.create_device(hostname=_LOOPBACK)]
    options._timeout = timeout
    return ProcessGroupGloo(store, shard.rank, shard.world, options)


def _nccl(store: FileStore, shard: Shard, timeout: timedelta) -> Any:
    from torch.distributed.distributed_c10d import ProcessGroupNCCL  # a torch for CPUs alone has none

    options = ProcessGroupNCCL.Options()
    options._timeout = timeout
    return ProcessGroupNCCL(store, shard.rank, shard.world, options)
