"""The Lease that gates all writes.

Nothing is decided by another machine's clock: a foreign holder has lost the lease when it was seen unchanged for the
whole duration by the local monotonic clock; our own ends one duration after the *start* of the last renewal that
succeeded. Writes get at most the time that is left.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from readapt_operator.kube.errors import AlreadyExists, Conflict, NotFound, NotLeader
from readapt_operator.kube.port import Kube
from readapt_operator.kube.resources import LEASES, Doc

LEASE_NAME = "readapt-operator"
_MARGIN_S = 1.0


class LeaseGate:
    """``step`` is called every third of the duration; ``remaining_s`` guards each write."""

    def __init__(
        self, kube: Kube, *, namespace: str, identity: str, duration_s: float, clock: Callable[[], float]
    ) -> None:
        self._kube = kube
        self._namespace = namespace
        self._identity = identity
        self._duration_s = duration_s
        self._clock = clock
        self._held_until: float | None = None
        self._seen: tuple[str, float] | None = None
        """resourceVersion of a foreign lease and when it was first seen."""

    @property
    def held(self) -> bool:
        """Whether a write may start now."""
        return self._held_until is not None and self._held_until - self._clock() > _MARGIN_S

    def remaining_s(self) -> float:
        """Seconds that a write may take; raises NotLeader."""
        if self._held_until is None or not self.held:
            raise NotLeader("the lease is not held")
        return self._held_until - self._clock() - _MARGIN_S

    async def step(self) -> bool:
        """Acquires or renews; whether the lease is held. Raises only what the API server's absence raises."""
        started = self._clock()
        found = await self._kube.get(LEASES, self._namespace, LEASE_NAME)
        if found is not None and not self._may_take(found, started):
            self._held_until = None
            return False
        try:
            await (self._kube.create(self._body()) if found is None else self._kube.replace(self._body(found)))
        except (AlreadyExists, Conflict, NotFound):
            self._held_until = None
            return False
        self._held_until = started + self._duration_s
        return True

    async def release(self) -> None:
        """Lets the next operator start at once; for a clean end."""
        if not self.held:
            return
        self._held_until = None
        found = await self._kube.get(LEASES, self._namespace, LEASE_NAME)
        if found is not None and found["spec"].get("holderIdentity") == self._identity:
            body = self._body(found)
            body["spec"]["holderIdentity"] = ""
            await self._kube.replace(body)

    def _may_take(self, found: Doc, now: float) -> bool:
        holder = found.get("spec", {}).get("holderIdentity")
        if not holder or holder == self._identity:
            self._seen = None
            return True
        version = found["metadata"]["resourceVersion"]
        if self._seen is None or self._seen[0] != version:
            self._seen = (version, now)
        return now - self._seen[1] > self._duration_s

    def _body(self, found: Doc | None = None) -> Doc:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        before = (found or {}).get("spec", {})
        same = before.get("holderIdentity") == self._identity
        meta = {"name": LEASE_NAME, "namespace": self._namespace}
        if found is not None:
            meta |= {k: found["metadata"][k] for k in ("uid", "resourceVersion")}
        return {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": meta,
            "spec": {
                "holderIdentity": self._identity,
                "leaseDurationSeconds": max(1, round(self._duration_s)),
                "acquireTime": before.get("acquireTime", now) if same else now,
                "renewTime": now,
                "leaseTransitions": before.get("leaseTransitions", 0) + (0 if same or found is None else 1),
            },
        }
