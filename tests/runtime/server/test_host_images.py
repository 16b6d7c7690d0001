"""Thousands of adapters can be registered: pages are kept within a bound and read again when they are wanted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from readapt_api.errors import Terminal, Transient
from readapt_runtime.model.adapter_image import AdapterImage, HostPages
from readapt_runtime.server.host_images import HostedSource, HostImages
from readapt_runtime.server.registration import FolderSource, Registered

IMAGE_BYTES = 2 * 1 * 8 * 4


class Changed(Terminal):
    """What is on disk is not what was registered."""


class Disk:
    """A source that counts how often it is read."""

    def __init__(self) -> None:
        self.reads: list[str] = []
        self.broken = False

    def load(self, digest: str) -> Registered:
        if self.broken:
            raise Changed(digest)
        self.reads.append(digest)
        pages = HostPages(torch.full((2, 1, 8), float(digest)))
        return Registered(AdapterImage(({},), 1, 2, lambda: pages), None)


def test_what_is_used_stays_and_what_was_pushed_out_is_read_again() -> None:
    disk, images = Disk(), HostImages(2 * IMAGE_BYTES, pinned=False)
    source = HostedSource(disk, images)
    registered = {digest: source.load(digest) for digest in ("1", "2")}
    assert bool((registered["1"].image.read().here == 1).all())
    registered["3"] = source.load("3")  # pushes 2 out, which was used least recently
    assert disk.reads == ["1", "2", "3"]
    for digest in ("1", "3"):
        registered[digest].image.read()
    assert disk.reads == ["1", "2", "3"]
    assert bool((registered["2"].image.read().here == 2).all())
    assert disk.reads == ["1", "2", "3", "2"]
    assert images.held_bytes == 2 * IMAGE_BYTES


def test_memory_is_bounded_however_many_are_registered() -> None:
    images = HostImages(5 * IMAGE_BYTES, pinned=False)
    source = HostedSource(Disk(), images)
    kept = [source.load(str(number)) for number in range(200)]
    assert images.held_bytes <= 5 * IMAGE_BYTES
    assert all(float(item.image.read().here[0, 0, 0]) == number for number, item in enumerate(kept))
    assert images.held_bytes <= 5 * IMAGE_BYTES


def test_an_image_larger_than_the_bound_is_served_and_not_kept() -> None:
    disk, images = Disk(), HostImages(IMAGE_BYTES - 1, pinned=False)
    small = HostPages(torch.zeros(1))
    kept = images.keep("small", Registered(AdapterImage(({},), 1, 1, lambda: small), None), lambda: disk.load("0"))
    registered = HostedSource(disk, images).load("4")
    assert bool((registered.image.read().here == 4).all())
    assert images.held_bytes == small.here.nbytes, "and pushes nothing out"
    assert kept.image.read() is small


def test_an_image_larger_than_the_bound_is_not_locked_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """And of those that are, no more than the bound: others have gone before."""
    images, locked = HostImages(2 * IMAGE_BYTES, pinned=True), list[int]()

    def pin(pages: torch.Tensor) -> torch.Tensor:
        locked.append(images.held_bytes + pages.nbytes)
        return pages

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    large = HostPages(torch.zeros(2 * IMAGE_BYTES))
    kept = images.keep("large", Registered(AdapterImage(({},), 1, 1, lambda: large), None), lambda: Disk().load("0"))
    assert not locked
    source = HostedSource(Disk(), images)
    registered = [source.load(str(number)) for number in range(5)]
    assert len(locked) == len(registered)
    assert max(locked) <= 2 * IMAGE_BYTES
    assert kept.image.rank == 1


def test_the_image_of_an_adapter_that_was_unloaded_makes_room_for_the_next() -> None:
    images = HostImages(9 * IMAGE_BYTES, pinned=False)
    source = HostedSource(Disk(), images)
    once, again, other = source.load("1"), source.load("1"), source.load("2")
    del once
    third = source.load("3")
    assert images.held_bytes == 3 * IMAGE_BYTES, "another name has the same digest"
    del again, other
    fourth = source.load("4")
    assert images.held_bytes == 2 * IMAGE_BYTES
    assert float(third.image.read().here[0, 0, 0]) == 3
    assert float(fourth.image.read().here[0, 0, 0]) == 4


@pytest.mark.parametrize("fails", [PermissionError(13, "denied"), OSError(116, "stale file handle")], ids=str)
def test_a_file_that_cannot_be_read_concerns_its_adapter_alone(fails: OSError, tmp_path: Path) -> None:
    class Refusing:
        def pack_named(self, folder: Path, base: str) -> AdapterImage:
            raise fails

    digest = f"sha256:{1:064x}"
    source = FolderSource(digest, {digest: tmp_path}, Refusing())  # type: ignore[arg-type]
    with pytest.raises(Transient, match=fails.strerror):
        source.load(digest)


def test_a_file_that_changed_meanwhile_is_an_error_and_not_an_answer() -> None:
    disk = Disk()
    source = HostedSource(disk, HostImages(1, pinned=False))
    registered = source.load("5")
    disk.broken = True
    with pytest.raises(Changed):
        registered.image.read()
