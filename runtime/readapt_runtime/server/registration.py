"""From the store, or a folder, to a checked image on the host: off the engine's thread.

In: (name, digest) of a wanted variant. Out: the packed image and the probe. Next: verification, then the page pool.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from readapt_api.artifacts import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PROBE, ArtifactKind, Manifest, Probe
from readapt_api.contract import Digest
from readapt_api.digest import FileEntry, hash_file, list_source, variant_digest
from readapt_api.errors import Terminal, Transient
from readapt_runtime.lora_format import AdapterReader
from readapt_runtime.model.adapter_image import AdapterImage, UnpackedAdapter
from readapt_runtime.store import MissingArtifact, Store

_MAX_PROBE_BYTES = 1 << 20


class Unreadable(Transient):
    """A file of the adapter cannot be read now."""


class WrongArtifact(Terminal):
    """The artifact is not a variant for this base version."""


@dataclass(frozen=True, slots=True)
class Registered:
    """What registration yields; ``probe`` is None when the variant has none."""

    image: AdapterImage
    probe: Probe | None


class Source(Protocol):
    """Where variants come from; blocking, called in a worker thread."""

    def load(self, digest: Digest) -> Registered:
        """Raises Transient when it may come later, Terminal when the variant cannot be served."""
        ...


@dataclass(frozen=True, slots=True)
class Packing:
    """How images are made for this pod's base and pools."""

    reader: AdapterReader
    make_image: Callable[[UnpackedAdapter], AdapterImage]

    def pack_listed(self, folder: Path, manifest: Manifest) -> AdapterImage:
        """Of a PEFT folder whose bytes the manifest lists; raises Terminal with what is wrong."""
        return self.make_image(self.reader.read(folder, manifest))

    def pack_named(self, folder: Path, base: Digest) -> tuple[Digest, AdapterImage]:
        """Of any PEFT folder, with its digest as a variant of ``base``; raises Terminal with what is wrong."""
        adapter = self.reader.read(folder)
        return folder_digest(base, folder, adapter.entries), self.make_image(adapter)


@dataclass(frozen=True, slots=True)
class StoreSource:
    """Variants of the artifact store by digest; every byte is checked against the manifest."""

    store: Store
    base: Digest
    packing: Packing

    def load(self, digest: Digest) -> Registered:
        with reading(digest):
            # these two are hashed by their reader, as the bytes that it reads
            artifact = self.store.open(digest, verify=True, unread={ADAPTER_CONFIG, ADAPTER_WEIGHTS})
            manifest = artifact.manifest
            if manifest.kind is not ArtifactKind.VARIANT:
                raise WrongArtifact(f"the artifact is a {manifest.kind}, not a Variant")
            if manifest.base != self.base:
                raise WrongArtifact(f"the variant belongs to the base {manifest.base}, this pod serves {self.base}")
            image = self.packing.pack_listed(artifact.path, manifest)
            has_probe = any(entry.name == PROBE for entry in manifest.attachments)
            return Registered(image, _read_probe(artifact.path / PROBE) if has_probe else None)


@dataclass(frozen=True, slots=True)
class FolderSource:
    """PEFT folders that the person who started the server named, by their digests at that time."""

    base: Digest
    folders: Mapping[Digest, Path]
    packing: Packing

    def load(self, digest: Digest) -> Registered:
        folder = self.folders.get(digest)
        if folder is None:
            raise MissingArtifact(f"{digest}: this server was started without a store")
        with reading(str(folder)):
            found, image = self.packing.pack_named(folder, self.base)
            if found != digest:
                raise WrongArtifact(f"{folder} has changed since the server was started")
        return Registered(image, None)


@contextmanager
def reading(what: str) -> Iterator[None]:
    """What the disk refuses is Unreadable: it concerns one adapter, and may pass."""
    try:
        yield
    except OSError as error:
        raise Unreadable(f"{what}: {error.strerror or error}") from error


def folder_digest(base: Digest, folder: Path, known: Iterable[FileEntry] = ()) -> Digest:
    """The digest of a folder as a variant of ``base``; ``known`` files count as they were read. Raises BadPath."""
    read = {entry.name: entry for entry in known}
    return variant_digest(base, (read.get(name) or hash_file(path, name) for name, path in list_source(folder)))


def _read_probe(path: Path) -> Probe:
    with path.open("rb") as stream:
        content = stream.read(_MAX_PROBE_BYTES + 1)
    try:
        return Probe.model_validate_json(content[:_MAX_PROBE_BYTES])
    except ValidationError as error:
        raise WrongArtifact(f"{PROBE}: {error.errors()[0]['msg']}") from error
