"""A worker process: holds one rank's share and computes each step that rank 0 tells it.

It lives as long as rank 0: both of its pipes end when that process does, however it ends. A worker that fails says so
at start, and later ends; rank 0 notices either.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from multiprocessing.connection import Connection

import torch

from readapt_api.errors import EXIT_BUG, EXIT_OK, ReadaptError, Terminal
from readapt_runtime.model.adapter_image import AdapterImage, HostPages, LinearFactors
from readapt_runtime.model.config import Linear
from readapt_runtime.model.shard import Shard
from readapt_runtime.parallel.group import Group, Meeting
from readapt_runtime.parallel.rank import Loaded, Plan, load
from readapt_runtime.parallel.steps import StepReader
from readapt_runtime.recycled_memory import ADAPTER_MEMORY
from readapt_runtime.server.logs import log_as_json

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker's news at start: its weights are there, and again when it has met the others."""

    num_pages: int


@dataclass(frozen=True, slots=True)
class Failed:
    """A worker's last words at start."""

    kind: str
    message: str
    is_terminal: bool
    """Whether a person must change an input."""


@dataclass(frozen=True, slots=True)
class Gone:
    """Images that are not needed any more after a step, counted from 1."""

    images: tuple[int, ...]
    after_step: int


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """Comes before the bytes of an image. Pickled: its reader trusts the process that started it."""

    number: int
    shape: tuple[int, ...]
    """``[layers, pages, page elements]``, as the bytes lie."""
    dtype: torch.dtype
    layers: tuple[Mapping[Linear, LinearFactors], ...]
    rank: int
    fully_sharded: bool
    gone: Gone

    @classmethod
    def of(cls, number: int, image: AdapterImage, gone: Gone) -> ImageHeader:
        pages = image.read().here.transpose(0, 1)
        return cls(number, tuple(pages.shape), pages.dtype, image.layers, image.rank, image.fully_sharded, gone)


class Held:
    """The images of this rank by number; filled by the thread that receives them, read with the steps."""

    def __init__(self) -> None:
        self.images: dict[int, AdapterImage] = {}
        self._steps = 0
        self._read = threading.Condition()

    def step_read(self) -> None:
        """What the step placed was copied."""
        with self._read:
            self._steps += 1
            self._read.notify()

    def drop(self, gone: Gone) -> None:
        """Once the steps that may still name them were read."""
        with self._read:
            self._read.wait_for(lambda: self._steps >= gone.after_step)
        for number in gone.images:
            del self.images[number]


def run(plan: Plan, shard: Shard, meeting: Meeting, steps: Connection, images: Connection) -> None:
    """The process. ``steps``: handshake, then packed steps in; ``images``: headers and bytes in, hashes out."""
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole process group: the server decides when to end
        signal.signal(number, signal.SIG_IGN)
    log_as_json()
    held = Held()
    pinned = plan.device == "cuda"
    threading.Thread(target=_receive_images, args=(images, held, pinned), name="images", daemon=True).start()
    try:
        loaded, group = _begin(plan, shard, meeting, steps)
        _compute(loaded, group, held, steps)
    except (EOFError, ConnectionError):
        log.info("the server has gone", extra={"rank": shard.rank})
    except Exception as error:
        log.critical("worker died", exc_info=error, extra={"rank": shard.rank})
        sys.exit(error.exit_code if isinstance(error, ReadaptError) else EXIT_BUG)


def _begin(plan: Plan, shard: Shard, meeting: Meeting, steps: Connection) -> tuple[Loaded, Group]:
    """Loads and meets the others; tells rank 0 how it went, either way."""
    try:
        loaded = load(plan, shard)
        steps.send(Ready(loaded.pool.num_pages))
        steps.recv_bytes()  # everyone has loaded: nobody waits in vain for a rank that could not
        group = Group(shard, plan.device_of(shard), meeting)
        steps.send(Ready(loaded.pool.num_pages))
    except (ReadaptError, RuntimeError) as error:
        steps.send(Failed(type(error).__name__, " ".join(str(error).split())[:1000], isinstance(error, Terminal)))
        raise
    return loaded, group


def _compute(loaded: Loaded, group: Group, held: Held, steps: Connection) -> None:
    """Runs steps until rank 0 is gone."""
    reader = StepReader(loaded.pool, held.images)
    decoder = loaded.decoder(group)
    while True:
        batch = reader.read(steps.recv_bytes())
        held.step_read()
        decoder.forward(batch)


def _receive_images(images: Connection, held: Held, pinned: bool) -> None:
    """Takes images as they come. Ends the process with rank 0, even when the main thread is stuck."""
    try:
        while True:
            header = images.recv()
            held.drop(header.gone)
            image = _receive(images, header, pinned)
            held.images[header.number] = image
            images.send_bytes(sha256(image_bytes(image)).digest())
    except (EOFError, ConnectionError):
        os._exit(EXIT_OK)


def _receive(images: Connection, header: ImageHeader, pinned: bool) -> AdapterImage:
    size = math.prod(header.shape) * header.dtype.itemsize
    memory = torch.empty(size, dtype=torch.uint8, pin_memory=True) if pinned else ADAPTER_MEMORY.allocate(size)
    pages = HostPages(memory.view(header.dtype).view(header.shape).transpose(0, 1))
    image = AdapterImage(header.layers, header.rank, len(pages.here), lambda: pages, header.fully_sharded)
    images.recv_bytes_into(image_bytes(image))
    return image


def image_bytes(image: AdapterImage) -> memoryview:
    """Those of its pages, ``[layers, pages, page elements]``: a view, as packing lays them out."""
    return image.read().here.transpose(0, 1).view(-1).view(torch.uint8).numpy().data
