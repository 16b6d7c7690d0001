"""One source, hashed and copied.

A source is read twice, once to know its digest and once into the store, and both must agree: a file that somebody
replaces while the Job runs is noticed (SourceChanged, another attempt reads the new one).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from readapt_api.contract import Digest
from readapt_api.digest import FileEntry, hash_file, list_source, source_digest
from readapt_api.errors import Terminal, Transient
from readapt_api.jobs import FetchRequest, FetchSource

_CHUNK = 8 << 20


class MissingSource(Terminal):
    """There is nothing at the source's path."""


class WrongDigest(Terminal):
    """The source is not the one that the user pinned."""


class SourceUnreadable(Transient):
    """The source's volume answered with an error."""


class SourceChanged(Transient):
    """The source changed while it was being read."""


@dataclass(frozen=True, slots=True)
class HashedSource:
    """A source whose files have been read once."""

    source: FetchSource
    files: tuple[FileEntry, ...]

    @property
    def digest(self) -> Digest:
        return source_digest(self.files)

    @property
    def size_bytes(self) -> int:
        return sum(entry.size for entry in self.files)

    def copy(self, folder: Path) -> None:
        """Copies every file into ``folder``; raises SourceChanged unless the bytes are those that were hashed."""
        for entry in self.files:
            path = _root(self.source, entry.name) / entry.name
            target = folder / entry.name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                _copy_file(path, target, entry)
            except FileNotFoundError:
                raise SourceChanged(f"{self.source.uri}: {entry.name} vanished while it was being read") from None


def hash_source(source: FetchSource) -> HashedSource:
    """Reads the source once. Raises MissingSource, WrongDigest, SourceUnreadable, BadPath."""
    path = Path(source.path)
    if not path.exists():
        raise MissingSource(f"{source.uri}: nothing there")
    try:
        hashed = HashedSource(source, tuple(hash_file(file, name) for name, file in list_source(path)))
    except FileNotFoundError as error:
        raise SourceChanged(f"{source.uri}: {error.filename} vanished while it was being read") from None
    except OSError as error:
        raise SourceUnreadable(f"{source.uri}: {error}") from error
    if source.digest is not None and hashed.digest != source.digest:
        raise WrongDigest(f"{source.uri}: pinned {source.digest}, found {hashed.digest}")
    return hashed


@contextmanager
def naming(source: FetchSource, copy: Path) -> Iterator[None]:
    """What is found wrong with the copy is said of the source, which is what the user knows."""
    try:
        yield
    except Terminal as error:
        raise type(error)(str(error).replace(str(copy), source.uri)) from error


def single_source(request: FetchRequest) -> FetchSource:
    """The source of every role but Data."""
    if len(request.sources) != 1:
        raise MissingSource(f"a {request.role.value} has one source, the request names {len(request.sources)}")
    return request.sources[0]


def required_base(request: FetchRequest) -> Digest:
    """The base that the source must fit."""
    if request.base is None:
        raise MissingSource(f"a {request.role.value} is checked against its base, the request names none")
    return request.base


def names_of(files: Sequence[FileEntry]) -> set[str]:
    return {entry.name for entry in files}


def _root(source: FetchSource, name: str) -> Path:
    path = Path(source.path)
    return path.parent if path.name == name and path.is_file() else path


def _copy_file(path: Path, target: Path, entry: FileEntry) -> None:
    sha = hashlib.sha256()
    with path.open("rb") as source, target.open("wb") as copy:
        while chunk := source.read(_CHUNK):
            sha.update(chunk)
            copy.write(chunk)
    if sha.hexdigest() != entry.sha256:
        raise SourceChanged(f"{entry.name} changed while it was being read")
