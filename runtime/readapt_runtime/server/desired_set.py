"""The desired set of this pod: from ConfigMap shards at start and by watching, pushed for speed; the newer one wins.

In: ``<set dir>/<i>/set.json`` (fixed, optional volumes) and ``POST /v1/desired``. Out: ``AdapterTable.apply``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from readapt_api.contract import Digest
from readapt_api.errors import Terminal
from readapt_api.serving import MAX_SHARDS, SHARD_FILE, DesiredSet, IncompleteSet, SetShard, join_set

log = logging.getLogger(__name__)

POLL_S = 1.0
_MAX_SHARD_BYTES = 2 << 20  # a ConfigMap holds at most 1 MiB


class WrongPod(Terminal):
    """The set is for another revision or base than this pod has."""


class DesiredSetKeeper:
    """Remembers the set with the highest sequence number and hands each new one on."""

    def __init__(self, revision: str, base: Digest, apply: Callable[[DesiredSet], None]) -> None:
        self._revision = revision
        self._base = base
        self._apply = apply
        self.current: DesiredSet | None = None

    def offer(self, desired: DesiredSet) -> bool:
        """Whether the set was taken; lower and equal sequence numbers are ignored. Raises WrongPod."""
        if desired.revision != self._revision:
            raise WrongPod(f"the set is for the revision {desired.revision}, this pod has {self._revision}")
        if desired.base != self._base:
            raise WrongPod(f"the set is for the base {desired.base}, this pod has {self._base}")
        if self.current is not None and desired.sequence <= self.current.sequence:
            return False
        self.current = desired
        log.info("desired set", extra={"sequence": desired.sequence, "adapters": len(desired.adapters)})
        self._apply(desired)
        return True


class ShardFolder:
    """The shards as files; a ConfigMap volume replaces them by swapping a symbolic link."""

    def __init__(self, folder: Path, keeper: DesiredSetKeeper) -> None:
        self._folder = folder
        self._keeper = keeper
        self._seen: object = None

    def poll(self) -> None:
        """Offers the set on disk when a file has changed since the last call; what is wrong with it is logged."""
        fingerprint = self._fingerprint()
        if fingerprint == self._seen:
            return
        self._seen = fingerprint
        try:
            self._keeper.offer(read_shards(self._folder))
        except IncompleteSet as error:
            log.info("desired set not complete yet", extra={"detail": str(error)})
        except WrongPod as error:
            log.error("desired set refused", extra={"detail": str(error)})

    async def watch(self) -> None:
        """Polls for ever; a set that is being written when it is read is read again after its next change."""
        while True:
            await asyncio.sleep(POLL_S)
            self.poll()

    def _fingerprint(self) -> tuple[object, ...]:
        return tuple(_stamp(path) for path in _shard_files(self._folder))


def read_shards(folder: Path) -> DesiredSet:
    """The set that the shards in the folder make up; raises IncompleteSet, also for files that cannot be read."""
    shards = []
    for path in _shard_files(folder):
        try:
            with path.open("rb") as stream:
                content = stream.read(_MAX_SHARD_BYTES)
            shards.append(SetShard.model_validate_json(content))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValidationError) as error:
            raise IncompleteSet(f"{path}: {str(error)[:200]}") from error
    return join_set(shards)


def _shard_files(folder: Path) -> list[Path]:
    return [folder / str(index) / SHARD_FILE for index in range(MAX_SHARDS)]


def _stamp(path: Path) -> tuple[str, int, int] | None:
    try:
        status = path.stat()
        return str(path.resolve()), status.st_mtime_ns, status.st_size
    except OSError:
        return None
