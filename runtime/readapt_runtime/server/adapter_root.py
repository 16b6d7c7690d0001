"""Adapters of one configured folder, ``readapt serve --adapter-root``: PEFT folders that are asked for by name.

In: the name of a folder directly below the root, from the administration port. Out: its digest and its image. A name
is a single path component by its pattern, and a link that leads out of the root is not followed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from readapt_api.contract import Digest
from readapt_api.errors import Transient
from readapt_runtime.server.host_images import HostImages
from readapt_runtime.server.registration import Packing, Registered, WrongArtifact, reading
from readapt_runtime.server.timed_reads import TimedReads
from readapt_runtime.store import MissingArtifact


class FolderChanged(Transient):
    """The folder changed while it was being read."""


@dataclass(frozen=True, slots=True)
class AdapterRoot:
    """See the module; blocking, called in a worker thread."""

    folder: Path
    base: Digest
    packing: Packing
    images: HostImages
    reads: TimedReads

    def load(self, name: str) -> tuple[Digest, Registered]:
        """Raises MissingArtifact for what is no folder below the root, FolderChanged, ReadHangs, or as packing."""
        digest, registered = self._read(name)
        return digest, self.images.keep(digest, registered, lambda: self._again(name, digest))

    def _again(self, name: str, digest: Digest) -> Registered:
        found, registered = self._read(name)
        if found != digest:
            raise WrongArtifact(f"{name} is another adapter now than the one that was loaded")
        return registered

    def _read(self, name: str) -> tuple[Digest, Registered]:
        return self.reads.read(name, lambda: self._read_folder(name))

    def _read_folder(self, name: str) -> tuple[Digest, Registered]:
        with reading(name):
            return self._read_checked(name)

    def _read_checked(self, name: str) -> tuple[Digest, Registered]:
        root = self.folder.resolve()
        folder = (root / name).resolve()
        if not folder.is_relative_to(root) or folder == root or not folder.is_dir():
            raise MissingArtifact(f"the adapter root has no folder {name!r}")
        before = _stamps(folder)
        digest, image = self.packing.pack_named(folder, self.base)
        if _stamps(folder) != before:
            raise FolderChanged(f"{name}: its files changed while they were read")
        return digest, Registered(image, None)


def _stamps(folder: Path) -> list[tuple[str, int, int]]:
    """Name, inode and time of the last change of every file."""
    with os.scandir(folder) as entries:
        return sorted((entry.name, entry.inode(), entry.stat().st_mtime_ns) for entry in entries)
