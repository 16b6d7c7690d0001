"""The set of a revision: which variants belong to it, its ConfigMaps, and telling the pods."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from readapt_api.serving import AdapterState, DesiredAdapter, DesiredSet
from readapt_api.v1alpha1.lora_adapter import VariantStatus
from readapt_operator.builders.meta import Owner
from readapt_operator.builders.sets import ADMIN_KEY_FILE, build_set
from readapt_operator.decide.adapter_pass import AdapterPass
from readapt_operator.decide.plan import Action, Apply, Create, Delete, Push, edit_of
from readapt_operator.observed import Member, Observed, PodView


def desired_set(seen: Observed, revision: str, base_digest: str, adapters: Iterable[AdapterPass]) -> DesiredSet:
    """All adapters with a passing variant for the base; the sequence grows when, and only when, the set changes.

    A variant that is held stays until the one of a changed source passes: nobody is to meet a gap between the two.
    Pods ignore what is not above the sequence that they know, so it counts beside the stored one: ConfigMaps get lost.
    """
    members = []
    held = seen.held(revision)
    for at in adapters:
        variant = None if at.conflicting else at.variant(base_digest) or _held_variant(at, base_digest, held)
        if variant is not None and variant.digest is not None:
            serving = at.adapter.spec.serving
            members.append(
                DesiredAdapter(
                    name=at.adapter.served_name,
                    digest=variant.digest,
                    preload=serving.preload or None,
                    priority=serving.priority or None,
                )
            )
    members += _unreadable(seen, revision, held, {member.name for member in members})
    stored = seen.sets.get(revision)
    known = [p.state.sequence for p in seen.pods_of(revision) if p.state is not None]
    sequence = max(stored.sequence if stored else 0, *known, 0)
    wished = DesiredSet(sequence=sequence, revision=revision, base=base_digest, adapters=tuple(members))
    if (
        stored is not None
        and stored.desired is not None
        and (stored.sequence, stored.desired.digest) == (sequence, wished.digest)
        and stored.admin_key == seen.admin_key
    ):
        return wished
    return wished.model_copy(update={"sequence": sequence + 1})


def _unreadable(
    seen: Observed, revision: str, held: frozenset[Member], taken: Collection[str]
) -> Iterator[DesiredAdapter]:
    """What a revision has of adapters that cannot be read: an old operator over new objects takes nothing away."""
    stored = seen.sets.get(revision)
    listed = stored.desired.adapters if stored is not None and stored.desired is not None else ()
    known = {name: DesiredAdapter(name=name, digest=digest) for name, digest in sorted(held)}
    known |= {a.name: a for a in listed}
    names = {u.served_name for u in seen.unreadable}
    return (known[name] for name in sorted(names.intersection(known).difference(taken)))


def _held_variant(at: AdapterPass, base_digest: str, held: frozenset[Member]) -> VariantStatus | None:
    """The variant of an earlier source that the revision has; it passed, too."""
    cells = [v for v in at.records.variants if v.base_digest == base_digest and v.passed and v.digest]
    return next((v for v in reversed(cells) if (at.adapter.served_name, v.digest) in held), None)


def write_set(seen: Observed, owner: Owner, desired: DesiredSet) -> Iterator[Action]:
    """ConfigMaps of a set that is not stored as it is wished; shards that are no longer needed go last."""
    stored = seen.sets.get(desired.revision)
    if stored is not None and stored.desired is not None and stored.sequence == desired.sequence:
        return
    shards = build_set(owner, desired, seen.admin_key)
    for i, body in enumerate(shards):
        found = stored.shards.get(i) if stored else None
        data = body["data"] if i == 0 else {**body["data"], ADMIN_KEY_FILE: None}
        yield Create(body) if found is None else Apply(edit_of(found, data=data))
    for i, surplus in (stored.shards if stored else {}).items():
        if i >= len(shards):
            yield Delete(surplus, "the set has fewer shards now")


def push_set(seen: Observed, desired: DesiredSet) -> Iterator[Action]:
    """Kubelets bring ConfigMaps within a minute; pods are told at once."""
    stored = seen.sets.get(desired.revision)
    if stored is None or stored.desired is None or stored.sequence != desired.sequence:
        return
    behind = tuple(p for p in seen.pods_of(desired.revision) if p.fresh and _is_behind(p, desired))
    if behind:
        yield Push(behind, desired)


def _is_behind(pod: PodView, desired: DesiredSet) -> bool:
    state = pod.state
    return state is not None and not pod.deleting and state.sequence < desired.sequence


def is_verified(pod: PodView, desired: DesiredSet) -> bool:
    """Whether a pod said in this pass that it holds exactly this set, every variant verified."""
    state = pod.state
    if not pod.fresh or state is None or state.revision != desired.revision or state.set_digest != desired.digest:
        return False
    return pod.verified.issuperset((a.name, a.digest) for a in desired.adapters)


def refused(pods: Iterable[PodView], desired: DesiredSet) -> list[tuple[str, str]]:
    """(served name, why) of the set's variants that a pod refuses to serve."""
    wished = {(a.name, a.digest) for a in desired.adapters}
    return sorted(
        {
            (a.name, a.message or a.reason or "the pod does not say why")
            for pod in pods
            for a in (pod.state.adapters if pod.state else ())
            if a.state is AdapterState.FAILED and (a.name, a.digest) in wished
        }
    )
