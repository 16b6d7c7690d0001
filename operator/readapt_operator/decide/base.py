"""The whole decision for one base and its adapters, on one screen."""

from __future__ import annotations

from dataclasses import replace

from readapt_api import conditions as c
from readapt_api.v1alpha1.base_model import BaseModelResource
from readapt_operator.decide.adapter import found_adapter, move_adapter
from readapt_operator.decide.adapter_pass import AdapterPass
from readapt_operator.decide.adapter_status import orphan_status, summarize_adapter
from readapt_operator.decide.base_status import BaseFacts, served_facts, summarize_base
from readapt_operator.decide.jobs import Schedule, schedule
from readapt_operator.decide.plan import Plan, State, Verdict, soonest, working
from readapt_operator.decide.rollout import POLL_S, Target, decide_rollout
from readapt_operator.decide.versions import Versions, resolve_drifts, resolve_versions
from readapt_operator.observed import Observed, revision_of

WROTE_S = 1.0
"""After a pass that wrote, look again: not every effect is announced by an event."""


def decide(seen: Observed) -> Plan:
    """What to write and to report now, and when to look again."""
    base = seen.base
    if base is None:
        return _without_base(seen)
    if base.metadata.deletion_timestamp is not None:
        return Plan()  # owner references collect the children
    versions = resolve_versions(seen, base)
    founded = _founded(seen, base, versions)
    drifts = resolve_drifts(seen, base, [at.move for at in founded if at.move is not None])
    adapters = tuple(move_adapter(at, drifts) for at in founded)
    target = _target(seen, base, versions)
    rollout = decide_rollout(seen, base, target, adapters)
    plan = schedule(
        seen,
        base,
        wished=[*versions.tasks, *drifts.tasks, *(t for at in adapters for t in at.tasks)],
        starts=[*versions.starts, *drifts.starts, *(s for at in adapters for s in at.starts)],
    )
    adapters = tuple(_scheduled(at, plan) for at in adapters)
    served = served_facts(seen, base, target, rollout)
    facts = BaseFacts(seen, base, versions, drifts, adapters, target, rollout, served)
    status, verdict = summarize_base(facts)
    statuses = {at.adapter.metadata.name: summarize_adapter(at, served, status.upgrade) for at in adapters}
    actions = (*plan.actions, *rollout.actions)
    again = soonest(
        WROTE_S if actions else None,
        verdict.again_s if verdict else None,
        POLL_S if served.is_verifying else None,
        *(at.verdict.again_s for at in adapters if at.verdict),
    )
    bugs = {at.adapter.metadata.name: at.bug for at in adapters if at.bug is not None}
    return Plan(actions, status, statuses, again, bugs)


def _without_base(seen: Observed) -> Plan:
    """Adapters of a base that there is not: nothing to do but to say so."""
    return Plan(adapter_statuses={a.metadata.name: orphan_status(a, seen) for a in seen.adapters})


def _target(seen: Observed, base: BaseModelResource, versions: Versions) -> Target | None:
    digest = versions.digest(base.spec.version)
    if digest is None:
        return None
    return Target(revision_of(base, digest, seen.runtime_image), base.spec.version, digest)


def _founded(seen: Observed, base: BaseModelResource, versions: Versions) -> tuple[AdapterPass, ...]:
    """Oldest first, so that the oldest claim of a served name wins; the base's own name is taken before all."""
    names = {base.metadata.name}
    decided = []
    for adapter in seen.adapters:
        age = (adapter.metadata.creation_timestamp, adapter.metadata.uid)
        taken = adapter.served_name in names or any(
            u.served_name == adapter.served_name and u.age < age for u in seen.unreadable
        )
        decided.append(found_adapter(AdapterPass(seen, base, adapter, versions, taken, adapter.status)))
        names.add(adapter.served_name)
    return tuple(decided)


def _scheduled(at: AdapterPass, plan: Schedule) -> AdapterPass:
    """An attempt that is due but does not start now is told as waiting."""
    names = {s.task.name(s.attempt) for s in at.starts}
    if at.verdict is None or at.verdict.state is not State.WORKING or not names:
        return at
    if names & plan.held:
        return replace(at, verdict=Verdict(State.HELD, c.SUSPENDED, "spec.suspend of the base is true"))
    if names <= plan.waiting:
        limit = at.base.spec.upgrade.max_parallel_jobs
        return replace(at, verdict=working(c.WAITING_FOR_SLOT, f"{limit} Jobs of {at.base.metadata.name} are running"))
    return at
