"""The desired set of a serving pod, its shards on disk, and its administration port.

The operator writes the set as ConfigMap shards into fixed, optional volumes ``<set dir>/<i>/set.json`` and pushes
the same document to ``POST /v1/desired``. Both carry a sequence number that only grows; a pod ignores lower ones
and shards that do not add up to ``digest``.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from pydantic import Field

from readapt_api.bounds import Priority
from readapt_api.contract import Contract, Digest, ServedName
from readapt_api.digest import digest_of
from readapt_api.errors import Transient

SHARD_FILE = "set.json"
MAX_SHARDS = 8
ADAPTERS_PER_SHARD = 2000

SERVING_PORT = 8080
ADMIN_PORT = 8081
REQUEST_LIMIT_S = 600
"""The longest that the server computes one answer, from admission to the last token."""
LINGER_S = 2
"""Quiet time after SIGTERM before the server closes idle connections."""
STOP_S = 20
"""More than the rest takes, up to the end of the process: closing connections, stopping the engine."""
HEADER_SET = "x-readapt-set"
"""On every answer: the revision that the pod belongs to."""
HEADER_ADAPTER = "x-readapt-adapter"
"""On every answer of an adapter: ``name@digest`` of the variant that computed it."""
TOKEN_AUDIENCE = "readapt-admin"
TOKEN_ALGORITHM = "EdDSA"
"""Admin tokens are JWTs signed with Ed25519: aud = TOKEN_AUDIENCE, sub = token_subject, exp within minutes."""


def token_subject(namespace: str, base: str) -> str:
    """Whom an admin token is for: the pods of one BaseModel, and not those of its namesake in another namespace."""
    return f"{namespace}/{base}"


class DesiredAdapter(Contract):
    """One adapter of the set: the served name and the variant that answers under it."""

    name: ServedName
    digest: Digest
    preload: bool | None = None
    """None is false; left out then, so that sets of before keep their digest."""
    priority: Priority | None = None
    """None is 0, likewise."""


class DesiredSet(Contract):
    """What a pod of ``revision`` should hold."""

    sequence: int = Field(ge=0)
    revision: str = Field(max_length=63)
    base: Digest
    adapters: tuple[DesiredAdapter, ...] = ()

    @property
    def digest(self) -> Digest:
        """Over revision, base and all adapters; not over the sequence number."""
        adapters = [a.to_wire() for a in sorted(self.adapters, key=lambda a: a.name)]
        return digest_of({"adapters": adapters, "base": self.base, "revision": self.revision})


class SetShard(Contract):
    """``set.json`` of one ConfigMap; equal in all shards but for ``shard`` and ``adapters``."""

    sequence: int = Field(ge=0)
    revision: str
    base: Digest
    digest: Digest
    shard: int = Field(ge=0, lt=MAX_SHARDS)
    shards: int = Field(ge=1, le=MAX_SHARDS)
    adapters: tuple[DesiredAdapter, ...] = ()


class IncompleteSet(Transient):
    """The shards on disk do not belong together yet (ConfigMap volumes are updated one by one)."""


def split_set(desired: DesiredSet) -> tuple[SetShard, ...]:
    """The shards of a set, in order; at least one."""
    ordered = sorted(desired.adapters, key=lambda a: a.name)
    chunks = [ordered[i : i + ADAPTERS_PER_SHARD] for i in range(0, len(ordered), ADAPTERS_PER_SHARD)] or [[]]
    return tuple(
        SetShard(
            sequence=desired.sequence,
            revision=desired.revision,
            base=desired.base,
            digest=desired.digest,
            shard=i,
            shards=len(chunks),
            adapters=tuple(chunk),
        )
        for i, chunk in enumerate(chunks)
    )


def join_set(shards: Iterable[SetShard]) -> DesiredSet:
    """The set that the shards make up; raises IncompleteSet when they do not."""
    by_index = {s.shard: s for s in shards}
    if not by_index:
        raise IncompleteSet("no shard of the desired set is there yet")
    head = max(by_index.values(), key=lambda s: s.sequence)
    parts = [by_index.get(i) for i in range(head.shards)]
    if any(p is None or p.sequence != head.sequence or p.digest != head.digest for p in parts):
        raise IncompleteSet(f"shards of sequence {head.sequence} are incomplete")
    adapters = tuple(a for p in parts if p is not None for a in p.adapters)
    joined = DesiredSet(sequence=head.sequence, revision=head.revision, base=head.base, adapters=adapters)
    if joined.digest != head.digest:
        raise IncompleteSet(f"shards of sequence {head.sequence} do not add up to {head.digest}")
    return joined


class AdapterState(StrEnum):
    """Of one variant on one pod."""

    PENDING = "Pending"
    """Not yet read from the store."""
    REGISTERED = "Registered"
    """Validated image on local disk or in memory; the probe has not run."""
    VERIFIED = "Verified"
    """The probe passed once on this pod for this digest."""
    FAILED = "Failed"
    """It will not be served; ``reason`` and ``message`` say why."""


class PodAdapter(Contract):
    name: str
    digest: Digest
    state: AdapterState
    reason: str = ""
    message: str = Field(default="", max_length=512)


class PodState(Contract):
    """``GET /v1/state`` of the administration port."""

    revision: str
    base: Digest
    sequence: int
    set_digest: Digest | None = None
    ready: bool
    draining: bool
    in_flight: int
    """Requests being answered."""
    connections: int
    """Open client connections of the serving port."""
    adapters: tuple[PodAdapter, ...] = ()
