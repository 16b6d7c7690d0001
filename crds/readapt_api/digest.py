"""How content gets its name: ``sha256:`` of a canonical manifest, without times and hosts."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from pydantic import Field

from readapt_api.contract import Contract, Digest
from readapt_api.errors import Terminal

_MAX_NAME = 1024


class BadPath(Terminal):
    """A file or folder that cannot be named by a digest."""


class FileEntry(Contract):
    """One file of an artifact or source; ``name`` is its path relative to the root, with ``/``."""

    name: str = Field(max_length=_MAX_NAME, pattern=r"^[^/\x00][^\x00]*$")
    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


def canonical_json(document: object) -> bytes:
    """Sorted keys, no white space, UTF-8: equal documents give equal bytes."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest_of(document: object) -> Digest:
    """``sha256:<hex>`` of the canonical JSON of ``document``."""
    return f"sha256:{hashlib.sha256(canonical_json(document)).hexdigest()}"


def hex_of(digest: Digest) -> str:
    """The 64 hexadecimal digits of a digest."""
    return digest.removeprefix("sha256:")


def hash_file(path: Path, name: str) -> FileEntry:
    """Reads ``path`` once and returns its entry under ``name``."""
    with path.open("rb", buffering=0) as stream:
        sha = hashlib.file_digest(stream, "sha256")
        return FileEntry(name=name, size=stream.tell(), sha256=sha.hexdigest())


def entry_of(content: bytes | memoryview, name: str) -> FileEntry:
    """The entry of a file that was read already; a long ``content`` is hashed without the interpreter's lock."""
    return FileEntry(name=name, size=len(content), sha256=hashlib.sha256(content).hexdigest())


def source_digest(files: Iterable[FileEntry]) -> Digest:
    """The digest of a source: names, sizes and sha256 of its files, order ignored."""
    return digest_of({"files": [f.to_wire() for f in sorted(files, key=lambda f: f.name)]})


def variant_digest(base: Digest, files: Iterable[FileEntry]) -> Digest:
    """The digest of a variant: its files, its kind and the base version that it belongs to."""
    wire = [f.to_wire() for f in sorted(files, key=lambda f: f.name)]
    return digest_of({"base": base, "files": wire, "kind": "Variant"})


def list_source(path: Path) -> list[tuple[str, Path]]:
    """(name, path) of the regular files of a source, sorted by name; a single file is named by itself.

    Hidden files and folders (``.git``, ``.cache``) do not count. Raises BadPath for a missing path, an empty
    folder, links that lead out of the folder, and names that no manifest can hold; OSError for what cannot be listed.
    """
    if path.is_file():
        return [(_name_of(Path(path.name)), path)]
    if not path.is_dir():
        raise BadPath(f"{path}: no such file or folder")
    root = path.resolve()
    found: list[tuple[str, Path]] = []
    for entry in sorted(path.rglob("*")):
        relative = entry.relative_to(path)
        if any(part.startswith(".") for part in relative.parts):
            continue
        if entry.is_dir():
            # rglob passes over a folder that may not be listed, and its files would be missing from the digest.
            os.scandir(entry).close()
            continue
        # rglob goes through no link to a folder: only a link itself leads out
        leads_out = entry.is_symlink() and not entry.resolve().is_relative_to(root)
        if leads_out or not entry.is_file():
            raise BadPath(f"{entry}: not a regular file inside {path}")
        found.append((_name_of(relative), entry))
    if not found:
        raise BadPath(f"{path}: empty folder")
    return found


def digest_path(path: Path) -> Digest:
    """The digest of the file or folder at ``path``, as ``readapt digest`` prints it.

    Raises BadPath for what ``list_source`` refuses and for what cannot be read.
    """
    try:
        return source_digest(hash_file(file, name) for name, file in list_source(path))
    except OSError as error:
        raise BadPath(f"{error.filename or path}: {error.strerror}") from error


def _name_of(relative: Path) -> str:
    name = relative.as_posix()
    try:
        name.encode()
    except UnicodeEncodeError:
        raise BadPath(f"{name!r}: the name is not UTF-8") from None
    if len(name) > _MAX_NAME:
        raise BadPath(f"{name[:80]}…: a name of more than {_MAX_NAME} characters")
    return name
