"""An adapter is registered before its pages are packed: they are packed once, when they are wanted first.

Files, factors and pages are real; ``Shelf`` hands out what ``StoreSource`` and ``AdapterRoot`` would.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
import torch

from readapt_runtime.engine.pool import PageLayout
from readapt_runtime.lora_format import AdapterKind, AdapterReader, LoraModule, StoredAdapter, read_adapter
from readapt_runtime.model.adapter_image import Factor, Packer, pack_adapter
from readapt_runtime.server.host_images import HostedSource, HostImages
from readapt_runtime.server.registration import Registered
from readapt_testing.tiny_engine import Tiny

ROOM = 1 << 30


@dataclass(frozen=True)
class Watched:
    """A stored adapter that says when it is packed, and waits for ``go``."""

    stored: StoredAdapter
    packings: list[str]
    name: str
    go: threading.Event

    @property
    def kind(self) -> AdapterKind:
        return self.stored.kind

    @property
    def nbytes(self) -> int:
        return self.stored.nbytes

    def flat(self) -> Mapping[Factor, torch.Tensor]:
        self.packings.append(self.name)
        assert self.go.wait(30)
        return self.stored.flat()

    def modules(self) -> Mapping[str, LoraModule]:
        return self.stored.modules()


@dataclass
class Shelf:
    """A source whose digests are names of the tiny adapters, and whatever follows a #."""

    tiny: Tiny
    reads: list[str] = field(default_factory=list)
    packings: list[str] = field(default_factory=list)
    go: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        config = self.tiny.config
        self.reader = AdapterReader(config.module_shapes)
        self.packer = Packer(config, PageLayout.of(config).elements, self.tiny.dtype)
        self.go.set()

    def load(self, digest: str) -> Registered:
        self.reads.append(digest)
        stored = self.reader.read(self.tiny.adapters[digest.partition("#")[0]])
        return Registered(self.packer.image(Watched(stored, self.packings, digest, self.go)), None)

    def size(self, name: str) -> int:
        return self.reader.read(self.tiny.adapters[name]).nbytes

    def pages(self, name: str) -> torch.Tensor:
        """As they are packed at once."""
        modules = read_adapter(self.tiny.adapters[name], self.tiny.config.module_shapes).modules
        elements = PageLayout.of(self.tiny.config).elements
        return pack_adapter(modules, self.tiny.config, elements, self.tiny.dtype).read().here


@pytest.fixture
def shelf(tiny: Tiny) -> Shelf:
    return Shelf(tiny)


@pytest.mark.parametrize("name", ["r3", "r4", "r8", "r64"])
def test_registering_packs_nothing_and_pages_are_those_packed_at_once(shelf: Shelf, name: str) -> None:
    images = HostImages(ROOM, pinned=False)
    image = HostedSource(shelf, images).load(name).image
    assert (shelf.packings, images.held_bytes) == ([], shelf.size(name))
    pages = image.read().here
    assert torch.equal(pages, shelf.pages(name))
    assert image.num_pages == len(pages)
    assert (shelf.packings, images.held_bytes) == ([name], pages.nbytes)


def test_pages_that_many_want_at_once_are_packed_once(shelf: Shelf) -> None:
    source = HostedSource(shelf, HostImages(ROOM, pinned=False))
    one, other = source.load("r8").image, source.load("r8").image
    shelf.go.clear()
    with ThreadPoolExecutor(8) as threads:
        found = [threads.submit(image.read) for image in (one, other) * 4]
        shelf.go.set()
        assert all(torch.equal(pages.result(30).here, shelf.pages("r8")) for pages in found)
    assert (shelf.packings, shelf.reads) == (["r8"], ["r8", "r8"])


def test_what_waits_to_be_packed_counts_and_what_is_pushed_out_is_read_again(shelf: Shelf) -> None:
    room = 3 * shelf.size("r8")
    images = HostImages(room, pinned=False)
    source = HostedSource(shelf, images)
    names = [f"r8#{number}" for number in range(12)]
    kept = []
    for name in names:
        kept.append(source.load(name))
        assert images.held_bytes <= room
    assert images.held_bytes == room, "and as many as there is room for stay"
    for registered in reversed(kept):
        assert torch.equal(registered.image.read().here, shelf.pages("r8"))
        assert images.held_bytes <= room
    assert shelf.packings == names[::-1]
    again = shelf.reads[len(names) :]
    assert set(names[:9]) <= set(again) < set(names), "those that were pushed out, and not the latest"
    assert len(again) == len(set(again))


def test_what_is_pushed_out_while_it_is_packed_serves_and_the_bound_holds(shelf: Shelf) -> None:
    room = 2 * shelf.size("r64")
    images = HostImages(room, pinned=False)
    source = HostedSource(shelf, images)
    slow = source.load("r64").image
    shelf.go.clear()
    with ThreadPoolExecutor(1) as thread:
        pages = thread.submit(slow.read)
        others = [source.load(f"r64#{number}") for number in range(3)]
        assert images.held_bytes <= room
        shelf.go.set()
        assert torch.equal(pages.result(30).here, shelf.pages("r64"))
    assert len(others) == 3
    assert images.held_bytes <= room
    assert slow.read() is pages.result(), "the latest used stays"
    assert shelf.packings == ["r64"]


def test_an_adapter_unloaded_before_it_was_packed_is_never_packed_and_leaves_its_room(shelf: Shelf) -> None:
    images = HostImages(ROOM, pinned=False)
    source = HostedSource(shelf, images)
    unloaded = source.load("r64")
    del unloaded
    kept = source.load("r4")
    assert images.held_bytes == shelf.size("r4")
    assert torch.equal(kept.image.read().here, shelf.pages("r4"))
    assert shelf.packings == ["r4"]


def test_packing_lets_go_of_what_was_read(shelf: Shelf) -> None:
    """Else memory holds every adapter twice."""
    stored = shelf.reader.read(shelf.tiny.adapters["r64"])
    gone = threading.Event()
    image = shelf.packer.image(Watched(stored, [], "r64", shelf.go))
    weakref.finalize(stored.data.raw, gone.set)
    del stored
    assert not gone.is_set()
    image.read()
    assert gone.is_set()


def test_packing_that_fails_is_tried_again(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    image = HostedSource(shelf, HostImages(ROOM, pinned=False)).load("r8").image
    with monkeypatch.context() as broken:
        broken.setattr(Watched, "flat", lambda _: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(MemoryError):
            image.read()
    assert torch.equal(image.read().here, shelf.pages("r8"))
