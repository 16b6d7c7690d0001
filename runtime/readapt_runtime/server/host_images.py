"""Images of registered adapters on the host, the latest used within a bound: what is pushed out is read again.

In: a source of variants. Out: the same source, whose images keep their pages here. So thousands of adapters can be
registered: each costs its directory, and its pages only while it is used. Called from any thread.
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
from readapt_runtime.model.adapter_image import HostPages
from readapt_runtime.server.registration import Registered, Source


class HostImages:
    """Pages by digest, least recently used first, as long as somebody may want them."""

    def __init__(self, max_bytes: int, pinned: bool) -> None:
        """``pinned``: in page-locked memory, so that a GPU copies them by itself."""
        self._max_bytes = max_bytes
        self._pinned = pinned
        self._pages: OrderedDict[Digest, HostPages] = OrderedDict()
        self._lock = Lock()
        self._users: Counter[Digest] = Counter()
        # filled by finalizers, which run wherever the last reference goes: this queue may be entered from anywhere
        self._left: SimpleQueue[Digest] = SimpleQueue()
        self.held_bytes = 0

    def keep(self, digest: Digest, registered: Registered, again: Callable[[], Registered]) -> Registered:
        """The same with its pages here; ``again`` reads and checks it once more after they were pushed out."""
        image = replace(registered.image, read=lambda: self.get(digest, lambda: again().image.read()))
        with self._lock:
            self._users[digest] += 1
        weakref.finalize(image, self._left.put, digest)
        self.put(digest, registered.image.read())
        return replace(registered, image=image)

    def get(self, digest: Digest, read: Callable[[], HostPages]) -> HostPages:
        """The pages; ``read`` (outside the lock, its errors pass) when they are not here."""
        with self._lock:
            pages = self._pages.get(digest)
            if pages is not None:
                self._pages.move_to_end(digest)
                return pages
        return self.put(digest, read())

    def put(self, digest: Digest, pages: HostPages) -> HostPages:
        """Keeps the pages and lets go of others, as far as the bound asks for it."""
        if self._pinned:
            pages = replace(pages, here=pages.here.pin_memory())
        if pages.here.nbytes > self._max_bytes:
            return pages  # it would push out all others and not stay either
        with self._lock:
            self._drop_unwanted()
            self._drop(digest)
            self._pages[digest] = pages
            self.held_bytes += pages.here.nbytes
            while self.held_bytes > self._max_bytes:
                self._drop(next(iter(self._pages)))
        return pages

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
        pages = self._pages.pop(digest, None)
        if pages is not None:
            self.held_bytes -= pages.here.nbytes


class HostedSource:
    """A source (see ``Source``) whose images stay on the host, within the bound."""

    def __init__(self, source: Source, images: HostImages) -> None:
        self._source = source
        self._images = images

    def load(self, digest: Digest) -> Registered:
        return self._images.keep(digest, self._source.load(digest), lambda: self._source.load(digest))
