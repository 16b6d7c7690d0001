"""Images of registered adapters on the host, the latest used within a bound: what is pushed out is read again.

In: a source of variants. Out: the same source, whose images keep their pages here. So thousands of adapters can be
registered: each costs its directory, and its pages only while it is used. Until pages are wanted for the first time
the factors are here instead, as they were read, and count as large as they are. Called from any thread.
"""

from __future__ import annotations

import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from queue import Empty, SimpleQueue
from threading import Lock

from readapt_api.contract import Digest
from readapt_runtime.model.adapter_image import AdapterImage, HostPages
from readapt_runtime.server.registration import Registered, Source


class HostImages:
    """Images to be packed, or their pages, by digest, least recently used first, as long as somebody may want them."""

    def __init__(self, max_bytes: int, pinned: bool) -> None:
        """``pinned``: pages in page-locked memory, so that a GPU copies them by itself."""
        self._max_bytes = max_bytes
        self._pinned = pinned
        self._held: OrderedDict[Digest, AdapterImage | HostPages] = OrderedDict()
        self._lock = Lock()
        self._users: Counter[Digest] = Counter()
        # filled by finalizers, which run wherever the last reference goes: this queue may be entered from anywhere
        self._left: SimpleQueue[Digest] = SimpleQueue()
        self._held_bytes = 0

    @property
    def held_bytes(self) -> int:
        """Of everything that is here."""
        with self._lock:
            self._drop_unwanted()
            return self._held_bytes

    def keep(self, digest: Digest, registered: Registered, again: Callable[[], Registered]) -> Registered:
        """The same with its pages here; ``again`` reads and checks it once more after they were pushed out."""
        own = registered.image
        image = replace(own, read=lambda: self._pages(digest, lambda: again().image), unpacked_bytes=0)
        with self._lock:
            self._users[digest] += 1
            known = digest in self._held  # under another name, and maybe packed
            if known:
                self._held.move_to_end(digest)
        weakref.finalize(image, self._left.put, digest)
        if not known:
            self._hold(digest, own if own.unpacked_bytes else self._packed(digest, own))
        return replace(registered, image=image)

    def _pages(self, digest: Digest, again: Callable[[], AdapterImage]) -> HostPages:
        """Packing and ``again`` are outside the lock; their errors pass."""
        with self._lock:
            held = self._held.get(digest)
            if held is not None:
                self._held.move_to_end(digest)
        if isinstance(held, HostPages):
            return held
        pages = self._packed(digest, again() if held is None else held)
        self._hold(digest, pages)
        return pages

    def _packed(self, digest: Digest, image: AdapterImage) -> HostPages:
        """In page-locked memory if they are to stay, for which others go first; page by page, as a GPU's pool is."""
        pages = image.read()
        if not self._pinned or not self._make_room(digest, pages.here.nbytes):
            return pages
        return replace(pages, here=pages.here.contiguous().pin_memory())

    def _make_room(self, digest: Digest, size: int) -> bool:
        """Whether so much may be held; what was used least recently goes for it."""
        with self._lock:
            self._drop_unwanted()
            if size > self._max_bytes:
                return False
            self._drop(digest)
            while self._held_bytes + size > self._max_bytes:
                self._drop(next(iter(self._held)))
            return True

    def _hold(self, digest: Digest, content: AdapterImage | HostPages) -> None:
        """In place of what is held of it, and of others as far as the bound asks for it."""
        with self._lock:
            self._drop_unwanted()
            self._drop(digest)
            if _bytes_of(content) > self._max_bytes:
                return  # it would push out all others and not stay either
            self._held[digest] = content
            self._held_bytes += _bytes_of(content)
            while self._held_bytes > self._max_bytes:
                self._drop(next(iter(self._held)))

    def _drop_unwanted(self) -> None:
        """Those of adapters that were unloaded."""
        with suppress(Empty):
            while True:
                digest = self._left.get_nowait()
                self._users[digest] -= 1
                if not self._users[digest]:
                    del self._users[digest]
                    self._drop(digest)

    def _drop(self, digest: Digest) -> None:
        content = self._held.pop(digest, None)
        if content is not None:
            self._held_bytes -= _bytes_of(content)


def _bytes_of(content: AdapterImage | HostPages) -> int:
    return content.here.nbytes if isinstance(content, HostPages) else content.unpacked_bytes


class HostedSource:
    """A source (see ``Source``) whose images stay on the host, within the bound."""

    def __init__(self, source: Source, images: HostImages) -> None:
        self._source = source
        self._images = images

    def load(self, digest: Digest) -> Registered:
        return self._images.keep(digest, self._source.load(digest), lambda: self._source.load(digest))
