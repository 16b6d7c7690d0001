"""Where artifacts live: a mounted volume, content-addressed, manifest last.

In: a folder of files that a Job made. Out: ``artifacts/<hex>/`` that every reader sees whole or not at all. Next:
Jobs open what they need by digest, serving pods (another uid) read variants and bases. Layout and manifests are
those of ``readapt_api.artifacts``. ``results/`` has what finished Jobs found, ``progress/`` what unfinished ones need
to go on. Nothing here imports torch: a Job looks up old results before it loads anything.

    StoreFull        Transient   no space or quota left
    StoreUnavailable Transient   the volume answers with an I/O error
    StoreDenied      Terminal    read-only, or the permissions are wrong
    MissingArtifact  Transient   no artifact of that digest (yet)
    CorruptArtifact  Terminal    its bytes are not those that the digest names
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

from pydantic import ValidationError

from readapt_api.artifacts import MANIFEST, Architecture, ArtifactKind, FactorBlock, Manifest, Provenance
from readapt_api.contract import Contract, Digest
from readapt_api.digest import FileEntry, canonical_json, hash_file, hex_of, list_source, source_digest, variant_digest
from readapt_api.errors import Terminal, Transient

_Model = TypeVar("_Model", bound=Contract)
_MAX_MANIFEST_BYTES = 8 << 20
_FULL = {errno.ENOSPC, errno.EDQUOT}
_DENIED = {errno.EROFS, errno.EACCES, errno.EPERM}


class StoreFull(Transient):
    """No space or quota left on the store's volume."""


class StoreUnavailable(Transient):
    """The store's volume answered with an I/O error."""


class StoreDenied(Terminal):
    """The store is read-only, or its permissions do not let us write."""


class MissingArtifact(Transient):
    """No artifact of this digest is in the store."""


class CorruptArtifact(Terminal):
    """The artifact's bytes are not those that its digest names."""


class ReservedName(Terminal):
    """A source holds a file whose name the store needs for itself."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """One artifact of the store: its folder and its manifest."""

    path: Path
    manifest: Manifest

    def entry(self, name: str) -> FileEntry:
        """The entry of one file or attachment; raises CorruptArtifact when the manifest does not list it."""
        for candidate in (*self.manifest.files, *self.manifest.attachments):
            if candidate.name == name:
                return candidate
        raise CorruptArtifact(f"{self.manifest.digest}: the manifest lists no {name}")


class Store:
    """The store below ``root``. Opening never writes, so a read-only mount is enough for serving pods."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def open(self, digest: Digest, *, verify: bool = False, unread: Container[str] = ()) -> Artifact:
        """The artifact of ``digest``; with ``verify`` every byte is hashed again.

        Files named in ``unread`` are not hashed: for readers that hash what they read through their own descriptor.
        Raises MissingArtifact, or CorruptArtifact when manifest, names, sizes (or bytes) do not add up.
        """
        with _store_errors(self.root):
            artifact = self._read(self._folder(digest), digest)
            _check_files(artifact, hash_bytes=verify, unread=unread)
        return artifact

    def has(self, digest: Digest) -> bool:
        """Whether a valid artifact of this digest is there (names and sizes checked, bytes not)."""
        try:
            self.open(digest)
        except (MissingArtifact, CorruptArtifact):
            return False
        return True

    @contextmanager
    def stage(self) -> Iterator[Path]:
        """An empty folder in ``tmp/`` on the store's own volume; ``publish`` moves it, else it is removed.

        Raises StoreFull when what is written into it finds no space.
        """
        with _store_errors(self.root):
            parent = _make_folder(self.root / "tmp")
            folder = Path(tempfile.mkdtemp(dir=parent))
        try:
            yield folder
        except OSError as error:
            if error.errno in _FULL:
                raise _full(self.root, error) from error
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(
        self,
        kind: ArtifactKind,
        files_from: Path,
        *,
        base: Digest | None = None,
        architecture: Architecture | None = None,
        rank: int | None = None,
        blocks: Sequence[FactorBlock] = (),
        provenance: Provenance | None = None,
        attachments: Sequence[str] = (),
    ) -> Manifest:
        """Puts the files of a folder into the store under their digest and returns the manifest that is there.

        ``attachments`` names the files of the folder that the digest does not cover. A folder of ``stage()`` is
        moved, any other is copied. The first valid artifact of a digest stays; a later equal one is dropped.
        Raises StoreFull, StoreUnavailable, StoreDenied, ReservedName, BadPath.
        """
        with self._staged(files_from) as folder, _store_errors(self.root):
            listed = {name: hash_file(path, name) for name, path in list_source(folder)}
            if MANIFEST in listed:
                raise ReservedName(f"{files_from}: {MANIFEST} is a name that the store keeps for itself")
            files = tuple(entry for name, entry in listed.items() if name not in attachments)
            manifest = Manifest(
                kind=kind,
                digest=_digest_for(kind, base, files),
                files=files,
                attachments=tuple(listed[name] for name in sorted(attachments)),
                base=base,
                architecture=architecture,
                rank=rank,
                blocks=tuple(blocks),
                provenance=provenance,
            )
            _settle(folder, manifest)
            return self._move_in(folder, manifest)

    def write_result(self, input_hash: Digest, result: Contract) -> None:
        """``results/<hex>.json``, replaced as a whole: of two equal Jobs the later one's record stays."""
        self._write("results", f"{hex_of(input_hash)}.json", canonical_json(result.to_wire()))

    def read_result(self, input_hash: Digest, model: type[_Model]) -> _Model | None:
        """The recorded result, or None when there is none or when an older contract wrote it."""
        path = self.root / "results" / f"{hex_of(input_hash)}.json"
        with _store_errors(self.root):
            try:
                return model.model_validate_json(path.read_bytes())
            except (FileNotFoundError, ValidationError):
                return None

    def write_evidence(self, input_hash: Digest, document: object) -> Digest:
        """``results/<hex>.evidence.json``; returns the digest of its bytes."""
        content = canonical_json(document)
        self._write("results", f"{hex_of(input_hash)}.evidence.json", content)
        return f"sha256:{hashlib.sha256(content).hexdigest()}"

    def write_report(self, input_hash: Digest, page: str) -> str:
        """``results/<hex>.report.html``; returns that path, relative to the root."""
        name = f"{hex_of(input_hash)}.report.html"
        self._write("results", name, page.encode())
        return f"results/{name}"

    def write_progress(self, input_hash: Digest, name: str, content: bytes) -> None:
        """``progress/<hex>.<name>``, replaced as a whole: a reader sees the earlier content or this one."""
        self._write("progress", f"{hex_of(input_hash)}.{name}", content)

    def progress(self, input_hash: Digest, name: str) -> Path:
        """Where ``write_progress`` puts it."""
        return self.root / "progress" / f"{hex_of(input_hash)}.{name}"

    def drop_progress(self, input_hash: Digest) -> None:
        """Removes all progress of one piece of work: its result is there."""
        with _store_errors(self.root):
            for path in (self.root / "progress").glob(f"{hex_of(input_hash)}.*"):
                path.unlink(missing_ok=True)

    def _folder(self, digest: Digest) -> Path:
        return self.root / "artifacts" / hex_of(digest)

    def _read(self, folder: Path, digest: Digest) -> Artifact:
        try:
            with (folder / MANIFEST).open("rb") as stream:
                content = stream.read(_MAX_MANIFEST_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError):
            raise MissingArtifact(f"{digest}: not in the store {self.root}") from None
        if len(content) > _MAX_MANIFEST_BYTES:
            raise CorruptArtifact(f"{digest}: its manifest is larger than {_MAX_MANIFEST_BYTES} bytes")
        try:
            manifest = Manifest.model_validate_json(content)
        except ValidationError as error:
            raise CorruptArtifact(f"{digest}: unreadable manifest: {error.errors()[0]['msg']}") from error
        named = _digest_for(manifest.kind, manifest.base, manifest.files)
        if not named == manifest.digest == digest:
            raise CorruptArtifact(f"{digest}: its manifest describes {named} and claims {manifest.digest}")
        return Artifact(folder, manifest)

    @contextmanager
    def _staged(self, source: Path) -> Iterator[Path]:
        """``source`` itself when it lies in ``tmp/``, else a copy of it there."""
        if source.parent == self.root / "tmp":
            yield source
            return
        with self.stage() as folder:
            with _store_errors(self.root):
                for name, path in list_source(source):
                    target = folder / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, target)
            yield folder

    def _move_in(self, folder: Path, manifest: Manifest) -> Manifest:
        target = self._folder(manifest.digest)
        _make_folder(target.parent)
        for _ in range(3):
            try:
                folder.rename(target)
            except OSError as error:
                if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
                    raise
                if self.has(manifest.digest):
                    return self.open(manifest.digest).manifest
                self._remove_broken(target, manifest.digest)
            else:
                _sync(target.parent)
                return manifest
        raise StoreUnavailable(f"{manifest.digest}: another process keeps writing this artifact")

    def _remove_broken(self, target: Path, digest: Digest) -> None:
        """Takes away what lies in an artifact's place without being one (a power loss, a copy by hand).

        Under a lock: otherwise a second publisher could take away the good artifact that the first put there
        after both had seen the broken one.
        """
        with (self.root / "tmp" / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if target.exists() and not self.has(digest):
                away = Path(tempfile.mkdtemp(dir=self.root / "tmp"))
                target.rename(away / "broken")
                shutil.rmtree(away, ignore_errors=True)

    def _write(self, folder: str, name: str, content: bytes) -> None:
        with _store_errors(self.root):
            target = _make_folder(self.root / folder)
            handle, temporary = tempfile.mkstemp(dir=_make_folder(self.root / "tmp"))
            try:
                with os.fdopen(handle, "wb") as stream:
                    stream.write(content)
                    os.fchmod(stream.fileno(), 0o644)
                    stream.flush()
                    os.fsync(stream.fileno())
                os.replace(temporary, target / name)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
            _sync(target)


def _digest_for(kind: ArtifactKind, base: Digest | None, files: Sequence[FileEntry]) -> Digest:
    if kind is ArtifactKind.VARIANT and base is not None:
        return variant_digest(base, files)
    return source_digest(files)


def _check_files(artifact: Artifact, *, hash_bytes: bool, unread: Container[str]) -> None:
    digest = artifact.manifest.digest
    for entry in (*artifact.manifest.files, *artifact.manifest.attachments):
        path = artifact.path / entry.name
        # Names come from a file that somebody else may have written: nothing outside the folder is ever opened.
        if PurePosixPath(entry.name).is_absolute() or ".." in PurePosixPath(entry.name).parts:
            raise CorruptArtifact(f"{digest}: {entry.name!r} leads out of the artifact")
        if path.is_symlink() or not path.is_file():
            raise CorruptArtifact(f"{digest}: {entry.name} is missing or no regular file")
        if path.stat().st_size != entry.size:
            raise CorruptArtifact(f"{digest}: {entry.name} has {path.stat().st_size} bytes, not {entry.size}")
        if hash_bytes and entry.name not in unread and hash_file(path, entry.name) != entry:
            raise CorruptArtifact(f"{digest}: the bytes of {entry.name} have changed since it was published")


def _settle(folder: Path, manifest: Manifest) -> None:
    """Everything readable by all and on the disk, the manifest last."""
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
        _sync(path)
    folder.chmod(0o755)
    target = folder / MANIFEST
    target.write_bytes(canonical_json(manifest.to_wire()))
    target.chmod(0o644)
    _sync(target)
    _sync(folder)


def _make_folder(path: Path) -> Path:
    """``path``, made if it is not there; open to the other uids that share the volume, whatever the umask."""
    if not path.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o755)
    return path


def _sync(path: Path) -> None:
    """fsync of a file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _store_errors(root: Path) -> Iterator[None]:
    """Gives an OSError of the volume its meaning: try again, or a person must act."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise _full(root, error) from error
        if error.errno in _DENIED:
            raise StoreDenied(f"the store {root} refuses access: {error}") from error
        raise StoreUnavailable(f"the store {root} does not answer: {error}") from error


def _full(root: Path, error: OSError) -> StoreFull:
    return StoreFull(f"the store {root} is full: {error.strerror}; free space or enlarge the volume")
