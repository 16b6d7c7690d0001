"""What is served now: the selected revision, its ready pods, and what they have verified."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from readapt_api.serving import AdapterState, DesiredSet
from readapt_operator.observed import Member, Observed, PodView


@dataclass(frozen=True, slots=True)
class Served:
    """Facts about the served revision; empty when nothing is served. Looked up by thousands of adapters."""

    revision: str | None
    version: str | None
    base_digest: str | None
    desired: DesiredSet | None
    pods: tuple[PodView, ...]
    """Ready and staying."""
    digests: Mapping[str, str]
    """served name -> digest, of the set."""
    verified: Mapping[Member, int]
    """On how many of ``pods``; 0 when absent."""
    refusals: Mapping[Member, str]
    """Which pod will not serve the variant, and why."""

    def count(self, name: str, digest: str) -> int:
        """On how many ready pods a variant is verified."""
        return self.verified.get((name, digest), 0)

    def is_verified(self, name: str) -> bool:
        """On every ready pod, at least one."""
        digest = self.digests.get(name)
        return digest is not None and bool(self.pods) and self.count(name, digest) == len(self.pods)

    @property
    def is_verifying(self) -> bool:
        """Whether a variant of the set is neither verified on every ready pod nor refused by one."""
        members = self.digests.items()
        return any(self.count(*m) < len(self.pods) and m not in self.refusals for m in members)


def served_of(seen: Observed, revision: str | None, version: str | None, desired: DesiredSet | None) -> Served:
    """Collects the facts once per pass."""
    pods = tuple(p for p in seen.pods_of(revision) if p.serving) if revision else ()
    verified: Counter[Member] = Counter()
    refusals: dict[Member, str] = {}
    for pod in pods:
        for told in pod.state.adapters if pod.state else ():
            if told.state is AdapterState.VERIFIED:
                verified[(told.name, told.digest)] += 1
            elif told.state is AdapterState.FAILED:
                refusals[(told.name, told.digest)] = f"pod {pod.name}: {told.message or told.reason}"
    return Served(
        revision=revision,
        version=version,
        base_digest=desired.base if desired else None,
        desired=desired,
        pods=pods,
        digests={a.name: a.digest for a in desired.adapters} if desired else {},
        verified=verified,
        refusals=refusals,
    )
