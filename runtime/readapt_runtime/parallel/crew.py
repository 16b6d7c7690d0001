"""The worker processes of a pod, as rank 0 sees them: started, told, watched, ended.

Each worker has two pipes (socket pairs): one for steps, used by the engine's thread alone, one for adapter images, so
that megabytes of an image never delay a step. Both end with this process, whatever ends it.
"""

from __future__ import annotations

import atexit
import multiprocessing
import socket
import struct
import tempfile
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import count
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from queue import Empty, SimpleQueue
from time import monotonic
from types import TracebackType
from typing import Self

from readapt_runtime.model.adapter_image import AdapterImage, LoraFactors, Shares
from readapt_runtime.model.config import DecoderConfig
from readapt_runtime.model.shard import Shard
from readapt_runtime.parallel.errors import WorkerDied, WorkerRefused
from readapt_runtime.parallel.group import Group, Meeting
from readapt_runtime.parallel.images import ImageMaker
from readapt_runtime.parallel.rank import Plan
from readapt_runtime.parallel.worker import Failed, Gone, ImageHeader, Ready, image_bytes, run


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds before a worker counts as dead."""

    start_s: float = 600.0
    """Until its weights are loaded; as long as a pod may take to start."""
    step_s: float = 60.0
    """In a collective, or in taking what it is sent."""
    end_s: float = 5.0
    """Until it is killed at the end."""


@dataclass(frozen=True, slots=True)
class _Worker:
    rank: int
    process: SpawnProcess
    steps: Connection
    images: Connection


class Crew:
    """Ranks 1 to ``world - 1``; a context manager, and ended with the process at the latest."""

    def __init__(self, plan: Plan, config: DecoderConfig, world: int, patience: Patience | None = None) -> None:
        """Starts them loading; raises UnsupportedModel where the model cannot be shared out."""
        self._plan, self._config, self._world = plan, config, world
        self._patience = patience or Patience()
        Shard(config, 0, world)
        self._folder = tempfile.TemporaryDirectory(prefix="readapt-ranks-")
        self._meeting = Meeting(Path(self._folder.name) / "meeting", self._patience.step_s)
        self._numbers = count()
        self._told = 0
        self._sending = threading.Lock()
        # filled by finalizers, which run wherever the last reference goes: this queue may be entered from anywhere
        self._dropped: SimpleQueue[int] = SimpleQueue()
        self._closing = threading.Event()
        self._workers: list[_Worker] = []
        atexit.register(self.close)
        for rank in range(1, world):
            self._workers.append(self._start(rank))

    def meet(self, num_pages: int) -> Group:
        """Waits until every worker has loaded, then connects the ranks.

        Raises WorkerRefused, or WorkerDied when one ends, takes too long, or has another number of pages.
        """
        self._await_ready(num_pages)
        for worker in self._workers:
            worker.steps.send_bytes(b"meet")
        shard = Shard(self._config, 0, self._world)
        try:
            group = Group(shard, self._plan.device_of(shard), self._meeting)
        except RuntimeError as error:
            raise WorkerDied(f"the ranks did not meet: {error}") from error
        self._await_ready(num_pages)
        return group

    def watch(self, on_death: Callable[[WorkerDied], None]) -> None:
        """Calls ``on_death`` from a thread of its own when a worker ends before ``close``."""
        threading.Thread(target=self._watch, args=(on_death,), name="crew", daemon=True).start()

    def tell(self, step: bytes) -> None:
        """Sends a packed step to every worker; raises WorkerDied."""
        for worker in self._workers:
            try:
                worker.steps.send_bytes(step)
            except OSError as error:
                raise _gone(worker, f"takes no step ({type(error).__name__})") from error
        self._told += 1

    def share(self, modules: Mapping[str, LoraFactors], maker: ImageMaker) -> AdapterImage:
        """Rank 0's image of an adapter, once every worker has acknowledged its own by hash; raises WorkerDied.

        The workers hold theirs as long as something here refers to what ``read`` gives, and let go of it before the
        next one comes: so what bounds the images of this process bounds those of all ranks.
        """
        shares = Shares(next(self._numbers))
        with self._sending:
            gone = Gone(self._drain_dropped(), self._told)
            for worker in self._workers:
                image = maker.make(modules, Shard(self._config, worker.rank, self._world))
                self._send_image(worker, ImageHeader.of(shares.number, image, gone), image_bytes(image))
            weakref.finalize(shares, self._dropped.put, shares.number)
        own = maker.make(modules, Shard(self._config, 0, self._world))
        pages = replace(own.read(), shares=shares)
        return replace(own, read=lambda: pages)

    def close(self) -> None:
        """Ends the workers: by their pipes, and by force where that does not do."""
        if self._closing.is_set():
            return
        self._closing.set()
        atexit.unregister(self.close)
        for worker in self._workers:
            worker.steps.close()
            worker.images.close()
        give_up = monotonic() + self._patience.end_s
        for worker in self._workers:
            worker.process.join(max(0.0, give_up - monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _start(self, rank: int) -> _Worker:
        context = multiprocessing.get_context("spawn")
        (steps, its_steps), (images, its_images) = self._pipe(), self._pipe()
        arguments = (self._plan, Shard(self._config, rank, self._world), self._meeting, its_steps, its_images)
        process = context.Process(target=run, args=arguments, name=f"rank {rank}", daemon=True)
        process.start()
        its_steps.close()  # the end of the process shall be the end of the pipe
        its_images.close()
        return _Worker(rank, process, steps, images)

    def _pipe(self) -> tuple[Connection, Connection]:
        """Sending fails after a while when nobody takes anything off the other end."""
        ours, its = multiprocessing.Pipe()
        seconds, fraction = divmod(self._patience.step_s, 1)
        with socket.socket(fileno=ours.fileno()) as end:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(seconds), int(fraction * 1e6)))
            end.detach()
        return ours, its

    def _await_ready(self, num_pages: int) -> None:
        give_up = monotonic() + self._patience.start_s
        for worker in self._workers:
            news = self._news(worker, give_up)
            if isinstance(news, Failed):
                text = f"rank {worker.rank} of {self._world}: {news.kind}: {news.message}"
                raise WorkerRefused(text) if news.is_terminal else WorkerDied(text)
            if news.num_pages != num_pages:
                raise WorkerDied(f"rank {worker.rank} has {news.num_pages} pages, rank 0 has {num_pages}")

    def _news(self, worker: _Worker, give_up: float) -> Ready | Failed:
        ready = wait([worker.steps, worker.process.sentinel], max(0.0, give_up - monotonic()))
        if not ready:
            raise _gone(worker, f"did not start within {self._patience.start_s:g} s")
        try:
            news: Ready | Failed = worker.steps.recv()
        except (EOFError, ConnectionError) as error:
            worker.process.join(self._patience.end_s)
            raise _gone(worker, f"ended with {worker.process.exitcode} while starting") from error
        return news

    def _drain_dropped(self) -> tuple[int, ...]:
        """Images that nothing here refers to any more."""
        found = []
        with suppress(Empty):
            while True:
                found.append(self._dropped.get_nowait())
        return tuple(found)

    def _send_image(self, worker: _Worker, header: ImageHeader, content: memoryview) -> None:
        try:
            worker.images.send(header)
            worker.images.send_bytes(content)
            if not worker.images.poll(self._patience.step_s):
                raise _gone(worker, "does not take an adapter")
            held = worker.images.recv_bytes()
        except (OSError, EOFError) as error:
            raise _gone(worker, f"takes no adapter ({type(error).__name__})") from error
        if held != sha256(content).digest():
            raise _gone(worker, "holds other bytes than it was sent")

    def _watch(self, on_death: Callable[[WorkerDied], None]) -> None:
        sentinels: Sequence[int] = [worker.process.sentinel for worker in self._workers]
        ended = wait(sentinels)
        if not self._closing.is_set():
            worker = next(w for w in self._workers if w.process.sentinel in ended)
            on_death(_gone(worker, f"ended with {worker.process.exitcode}"))


def _gone(worker: _Worker, what: str) -> WorkerDied:
    return WorkerDied(f"the worker of rank {worker.rank} (process {worker.process.pid}) {what}")
