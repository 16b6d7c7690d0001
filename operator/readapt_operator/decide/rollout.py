"""From the set that is served to the set that is wished for: BlueGreen.

What is served is what the Service selects. A revision that is neither served nor wished is drained and scaled to
zero, whatever it was before; so an upgrade, a roll-back and a wish that changed half-way are one path.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

from readapt_api import conditions as c
from readapt_api import labels
from readapt_api.errors import EXIT_BAD_INPUT
from readapt_api.serving import DesiredSet
from readapt_api.v1alpha1.base_model import BaseModelResource
from readapt_operator.builders.meta import Owner
from readapt_operator.builders.serving import build_deployment, build_service
from readapt_operator.decide.adapter_pass import AdapterPass
from readapt_operator.decide.plan import Action, Apply, Create, Delete, Drain, State, Verdict, edit_of, stalled, working
from readapt_operator.decide.sets import desired_set, is_verified, push_set, refused, write_set
from readapt_operator.observed import DeploymentView, Observed, PodView

POLL_S = 1.0
HISTORY = 3
"""Old revisions kept at zero replicas for roll-back."""


@dataclass(frozen=True, slots=True)
class Target:
    """The wished revision."""

    revision: str
    version: str
    base_digest: str


@dataclass(frozen=True, slots=True)
class Rollout:
    """What to write, which set is served after this pass, and why the wished one is not (None: it is)."""

    actions: tuple[Action, ...]
    served: str | None
    served_set: DesiredSet | None
    verdict: Verdict | None


def decide_rollout(
    seen: Observed, base: BaseModelResource, target: Target | None, adapters: tuple[AdapterPass, ...]
) -> Rollout:
    """``target`` is None while the wished version is not in the store; what is served is kept up all the same."""
    served = seen.served_revision
    served_set = _set_of(seen, served, target, adapters)
    actions = list(_keep_up(seen, base, served_set, target))
    verdict: Verdict | None = None
    if target is None:
        verdict = None  # the caller knows why
    elif served is None:
        verdict = _first(seen, base, target, adapters, actions)
    elif served != target.revision:
        verdict = _move(seen, base, target, adapters, _held_names(seen, served, served_set), actions)
    retired, draining = _retire(seen, {served, target.revision if target else None})
    actions += retired
    return Rollout(tuple(actions), served, served_set, verdict or draining)


def _set_of(
    seen: Observed, revision: str | None, target: Target | None, adapters: tuple[AdapterPass, ...]
) -> DesiredSet | None:
    """The set of the served revision; its base is what its Deployment says."""
    if revision is None:
        return None
    found = seen.deployment(revision)
    digest = found.base_digest if found else None
    if digest is None and target is not None and target.revision == revision:
        digest = target.base_digest
    return None if digest is None else desired_set(seen, revision, digest, adapters)


def _keep_up(
    seen: Observed, base: BaseModelResource, desired: DesiredSet | None, target: Target | None
) -> Iterator[Action]:
    """Set, pods and Service of the served revision."""
    if desired is None:
        return
    yield from write_set(seen, Owner.of(base), desired)
    yield from push_set(seen, desired)
    found = seen.deployment(desired.revision)
    if found is not None:
        yield from _scale(found, base.spec.serving.replicas)
    elif target is not None and target.revision == desired.revision:
        yield _deployment(seen, base, target)
    if seen.service is None:
        yield Create(build_service(base, desired.revision))


def _first(
    seen: Observed,
    base: BaseModelResource,
    target: Target,
    adapters: tuple[AdapterPass, ...],
    actions: list[Action],
) -> Verdict:
    """Nothing is served yet: the base at once, adapters join as they pass."""
    if base.spec.suspend:
        return _held()
    actions += _prepare(seen, base, target, desired_set(seen, target.revision, target.base_digest, adapters))
    if seen.service is None:
        actions.append(Create(build_service(base, target.revision)))
    else:
        actions.append(Apply(_switch(seen.service.body, target.revision)))
    return working(c.ROLLING_OUT, f"the first pods of version {target.version} start", POLL_S)


def _held_names(seen: Observed, served: str, desired: DesiredSet | None) -> frozenset[str]:
    """Who is served now. ConfigMaps get lost, and pods do not always answer: what should be there counts as well."""
    wished = desired.adapters if desired else ()
    return frozenset([*(name for name, _ in seen.held(served)), *(a.name for a in wished)])


def _move(
    seen: Observed,
    base: BaseModelResource,
    target: Target,
    adapters: tuple[AdapterPass, ...],
    held: frozenset[str],
    actions: list[Action],
) -> Verdict:
    """Adapters first, then pods, then the switch."""
    if base.spec.suspend:
        return _held()
    waiting = _all_are_readable(seen, adapters, held) or _adapters_are_there(target, adapters, held)
    if waiting is not None:
        return waiting
    desired = desired_set(seen, target.revision, target.base_digest, adapters)
    actions += _prepare(seen, base, target, desired)
    waiting = _pods_are_ready(seen, base, target, desired)
    if waiting is not None:
        return waiting
    if seen.service is not None:
        actions.append(Apply(_switch(seen.service.body, target.revision)))
    return working(c.ROLLING_OUT, f"the Service is switched to version {target.version}", POLL_S)


def _all_are_readable(seen: Observed, adapters: tuple[AdapterPass, ...], held: frozenset[str]) -> Verdict | None:
    """Nobody can say what an adapter that cannot be read needs, so it is not left behind."""
    served = held.difference(at.adapter.served_name for at in adapters if not at.conflicting)
    names = sorted(u.name for u in seen.unreadable if u.served_name in served)
    return stalled(c.STRAGGLERS_BLOCK, unreadable_text(names)) if names else None


def unreadable_text(names: Sequence[str]) -> str:
    """For people."""
    return f"LoRAAdapter {', '.join(names[:3])}: this version of Readapt cannot read what another one accepted"


def _adapters_are_there(target: Target, adapters: tuple[AdapterPass, ...], held: frozenset[str]) -> Verdict | None:
    """Adapters that are being worked on are waited for; of the failed ones those that are served now block."""
    missing = [at for at in adapters if not at.conflicting and at.variant(target.base_digest) is None]
    failed = [at for at in missing if at.verdict is not None and at.verdict.state is State.STALLED]
    blocking = [at for at in failed if at.adapter.served_name in held]
    if blocking:
        first = blocking[0]
        why = first.verdict.message if first.verdict else ""
        text = f"{len(blocking)} of {len(adapters)} adapters cannot move to {target.version}; "
        return stalled(c.STRAGGLERS_BLOCK, f"{text}{first.adapter.metadata.name}: {why}")
    pending = [at for at in missing if at not in failed]
    if pending:
        text = f"{len(pending)} of {len(adapters)} adapters are on their way to {target.version}"
        return working(c.WAITING_FOR_ADAPTERS, text)
    return None


def _prepare(seen: Observed, base: BaseModelResource, target: Target, desired: DesiredSet) -> Iterator[Action]:
    """The set before the pods that read it."""
    yield from write_set(seen, Owner.of(base), desired)
    yield from push_set(seen, desired)
    found = seen.deployment(target.revision)
    if found is None:
        yield _deployment(seen, base, target)
    else:
        # The wish came back while its pods drained. Draining has no way back: they make room for fresh ones.
        draining = any(p.state is not None and p.state.draining for p in _staying(seen, target))
        yield from _scale(found, 0 if draining else base.spec.serving.replicas)


def _staying(seen: Observed, target: Target) -> list[PodView]:
    return [p for p in seen.pods_of(target.revision) if not p.deleting]


def _pods_are_ready(seen: Observed, base: BaseModelResource, target: Target, desired: DesiredSet) -> Verdict | None:
    """All wished pods are ready, and each said in this very pass that it holds the whole set, verified."""
    found = seen.deployment(target.revision)
    pods = _staying(seen, target)
    ready = [p for p in pods if p.ready and not (p.state is not None and p.state.draining)]
    wished = base.spec.serving.replicas
    why = refused(pods, desired)
    if why:
        text = f"{len(why)} variants are refused by the pods of {target.version}; {why[0][0]}: {why[0][1]}"
        return stalled(c.VERIFICATION_FAILED, text)
    if found is None or found.replicas != wished or found.ready_replicas < wished or len(ready) < wished:
        return pods_missing(pods, f"{len(ready)} of {wished} pods of {target.version} are ready")
    verified = sum(is_verified(p, desired) for p in ready)
    if verified < len(ready):
        text = (
            f"{verified} of {len(ready)} pods of {target.version} have verified their {len(desired.adapters)} variants"
        )
        return working(c.VERIFYING, text, POLL_S)
    return None


def pods_missing(pods: Iterable[PodView], text: str) -> Verdict:
    """``text`` and what keeps the first troubled pod from being ready; a person must act when it refuses its input."""
    troubled = sorted((p for p in pods if p.trouble), key=lambda p: p.exit_code != EXIT_BAD_INPUT)
    if not troubled:
        return working(c.ROLLING_OUT, text, POLL_S)
    first = troubled[0]
    text = f"{text}; {first.name}: {first.trouble}"
    if first.exit_code == EXIT_BAD_INPUT:
        return stalled(c.SERVING_FAILED, text)
    return working(c.ROLLING_OUT, text, POLL_S)


def _retire(seen: Observed, kept: set[str | None]) -> tuple[list[Action], Verdict | None]:
    """Revisions that are neither served nor wished: drain, to zero, and the oldest away."""
    old = [d for d in seen.deployments if d.revision not in kept and not d.deleting]
    running = [d for d in old if d.replicas > 0]
    actions: list[Action] = []
    for deployment in running:
        actions += _drain(seen, deployment)
    actions += _forget(seen, [d for d in old if d not in running])
    actions += _forget_sets(seen, kept)
    if not running:
        return actions, None
    return actions, working(c.DRAINING, f"pods of version {running[0].version} finish their connections", POLL_S)


def _drain(seen: Observed, old: DeploymentView) -> Iterator[Action]:
    """Only after no EndpointSlice has listed old pods for a while: a drained pod closes its connections.

    The limit counts from when they were first told, by an annotation: a pod that does not answer says nothing, and an
    operator that was restarted remembers nothing.
    """
    if seen.endpoints_settled_s is None or seen.endpoints_settled_s < seen.propagation_s:
        return
    pods = [p for p in seen.pods_of(old.revision) if not p.deleting]
    untold = tuple(p for p in pods if p.state is None or not p.state.draining)
    if untold:
        yield Drain(untold)
    limit = timedelta(seconds=seen.drain_limit_s)
    if all(_is_idle(p) for p in pods) or (old.retired_at is not None and seen.now - old.retired_at > limit):
        yield from _scale(old, 0)
    elif old.retired_at is None:
        yield Apply(edit_of(old.body, {labels.RETIRED_AT: seen.stamp}))


def _is_idle(pod: PodView) -> bool:
    """It was told, and says now that nobody is connected; or it neither answers nor is ready."""
    state = pod.state if pod.fresh else None
    if state is None:
        return not pod.ready
    return state.draining and state.connections == 0 and state.in_flight == 0


def _forget(seen: Observed, idle: list[DeploymentView]) -> Iterator[Action]:
    """Beyond HISTORY the oldest go; their sets follow."""
    for deployment in sorted((d for d in idle if d.live_replicas == 0), key=lambda d: d.created)[:-HISTORY]:
        yield Delete(deployment.body, f"more than {HISTORY} old revisions")


def _forget_sets(seen: Observed, kept: set[str | None]) -> Iterator[Action]:
    """Sets without a Deployment: of a forgotten revision, or of a wish that was taken back right after the write."""
    for revision, stored in seen.sets.items():
        if revision not in kept and seen.deployment(revision) is None:
            for shard in stored.shards.values():
                yield Delete(shard, "no Deployment is of its revision")


def _scale(found: DeploymentView, replicas: int) -> Iterator[Action]:
    """However a drain ended, the next one has its own time."""
    retired = labels.RETIRED_AT in (found.body["metadata"].get("annotations") or {})
    if (found.replicas != replicas or retired) and not found.deleting:
        marks = {labels.RETIRED_AT: None} if retired else None
        yield Apply(edit_of(found.body, marks, spec={"replicas": replicas}))


def _deployment(seen: Observed, base: BaseModelResource, target: Target) -> Action:
    return Create(build_deployment(base, target.revision, target.version, target.base_digest, seen.runtime_image))


def _switch(service: dict[str, object], revision: str) -> dict[str, object]:
    return edit_of(service, spec={"selector": {labels.REVISION: revision}})


def _held() -> Verdict:
    return Verdict(State.HELD, c.SUSPENDED, "spec.suspend is true")
