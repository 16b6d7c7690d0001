"""The keys that clients of the serving port may send: one a line of a file, which may change at any time.

In: the file, a mounted Secret for instance. Out: whether a key is among them. Blank lines and lines that begin with
``#`` do not count. A file that is gone, unreadable or without a key changes nothing.
"""

from __future__ import annotations

import hmac
import logging
from pathlib import Path

from readapt_api.errors import Terminal

log = logging.getLogger(__name__)

_Stamp = tuple[int, int, int]


class BadKeys(Terminal):
    """A file that cannot be read, or that holds no key."""


class ApiKeys:
    """Raises BadKeys when the file holds none at first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = _stamp(path)
        self._keys = read_keys(path)

    def accept(self, given: bytes) -> bool:
        """Compares with every key, in a time that does not depend on which one it is."""
        self._refresh()
        return sum(hmac.compare_digest(given, key) for key in self._keys) > 0

    def _refresh(self) -> None:
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = read_keys(self._path)
        except BadKeys as error:
            log.warning("the last keys that could be read stand", extra={"fault": str(error)})
        else:
            log.info("API keys read again", extra={"keys": len(self._keys)})


def read_keys(path: Path) -> tuple[bytes, ...]:
    """Raises BadKeys."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadKeys(f"--api-key-file: {error}") from error
    keys = tuple(key.encode() for line in lines if (key := line.strip()) and not key.startswith("#"))
    if not keys:
        raise BadKeys(f"--api-key-file: {path} holds no key")
    return keys


def _stamp(path: Path) -> _Stamp | None:
    """What tells one state of the file from the next; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
