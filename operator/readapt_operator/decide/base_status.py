"""Status of a BaseModel: records, counters, conditions."""

from __future__ import annotations

from dataclasses import dataclass

from readapt_api import conditions as c
from readapt_api import labels
from readapt_api.v1alpha1.base_model import (
    AdapterCounts,
    BaseModelResource,
    BaseModelStatus,
    FailureSample,
    UpgradeStatus,
)
from readapt_operator.decide.adapter_pass import AdapterPass
from readapt_operator.decide.plan import State, Verdict, stalled, working
from readapt_operator.decide.rollout import POLL_S, Rollout, Target, pods_missing, unreadable_text
from readapt_operator.decide.served import Served, served_of
from readapt_operator.decide.versions import Drifts, Versions
from readapt_operator.observed import Observed
from readapt_operator.status import Conditions, shorten

_SAMPLES = 10
_SAMPLE_CHARS = 300


@dataclass(frozen=True, slots=True)
class BaseFacts:
    """Everything that was decided for a base in this pass."""

    seen: Observed
    base: BaseModelResource
    versions: Versions
    drifts: Drifts
    adapters: tuple[AdapterPass, ...]
    target: Target | None
    rollout: Rollout
    served: Served

    @property
    def failed(self) -> tuple[AdapterPass, ...]:
        """Adapters that a person must look at and that have no variant for the wished version."""
        return tuple(at for at in self.adapters if at.passing is None and _state(at) is State.STALLED)


def served_facts(seen: Observed, base: BaseModelResource, target: Target | None, rollout: Rollout) -> Served:
    """Two names may mean the same weights and so the same revision: then the wished name is the served one."""
    version: str | None = None
    if rollout.served is not None:
        found = seen.deployment(rollout.served)
        version = found.version if found else base.status.version
        if target is not None and target.revision == rollout.served:
            version = target.version
    return served_of(seen, rollout.served, version, rollout.served_set)


def summarize_base(facts: BaseFacts) -> tuple[BaseModelStatus, Verdict | None]:
    """The status to be written, if it differs, and what it says is left to do."""
    base, served = facts.base, facts.served
    verdict = _verdict(facts)
    passed = sum(at.passing is not None for at in facts.adapters)
    deployment = facts.seen.deployment(served.revision)
    counts = AdapterCounts(
        total=len(facts.adapters),
        ready=passed,
        adapting=sum(at.passing is None and _state(at) is State.WORKING for at in facts.adapters),
        failed=len(facts.failed),
    )
    status = BaseModelStatus(
        observed_generation=base.metadata.generation,
        conditions=_conditions(facts, verdict, passed),
        version=served.version,
        target_version=base.spec.version,
        revision=served.revision,
        set=served.desired.digest if served.desired else None,
        replicas=deployment.live_replicas if deployment else 0,
        ready_replicas=len(served.pods),
        selector=_selector(base, served.revision),
        upgrade=_upgrade(facts, verdict),
        versions=facts.versions.records,
        drifts=facts.drifts.records,
        adapters=counts,
        adapters_ready=f"{passed}/{len(facts.adapters)}",
        failures=tuple(_sample(at) for at in facts.failed[:_SAMPLES]),
    )
    return status, verdict


def _verdict(facts: BaseFacts) -> Verdict | None:
    """The first thing that is missing on the way to the wished set."""
    wished = facts.versions.known[facts.base.spec.version]
    if isinstance(wished, Verdict):
        return _held_instead(facts, wished)
    return facts.rollout.verdict or _adapters_missing(facts) or _set_unverified(facts) or _unreadable(facts.seen)


def _held_instead(facts: BaseFacts, wished: Verdict) -> Verdict:
    """While suspended nothing is started, so work that would have to start is held."""
    if facts.base.spec.suspend and wished.state is State.WORKING and facts.versions.starts:
        return Verdict(State.HELD, c.SUSPENDED, "spec.suspend is true")
    return wished


def _adapters_missing(facts: BaseFacts) -> Verdict | None:
    """The wished set is served, and some adapters are not in it."""
    missing = [at for at in facts.adapters if at.passing is None]
    pending = [at for at in missing if _state(at) is not State.STALLED]
    total = len(facts.adapters)
    if pending:
        held = all(_state(at) is State.HELD for at in pending)
        state, reason = (State.HELD, c.SUSPENDED) if held else (State.WORKING, c.WAITING_FOR_ADAPTERS)
        return Verdict(state, reason, f"{len(pending)} of {total} adapters have no variant yet")
    if missing:
        first = missing[0].verdict
        text = f"{len(missing)} of {total} adapters failed; {missing[0].adapter.metadata.name}: "
        return stalled(first.reason, text + first.message) if first else None
    return None


def _unreadable(seen: Observed) -> Verdict | None:
    """They keep what they serve; their own status cannot be read either, so the base tells."""
    names = sorted(u.name for u in seen.unreadable)
    return stalled(c.UNREADABLE, unreadable_text(names)) if names else None


def _set_unverified(facts: BaseFacts) -> Verdict | None:
    served = facts.served
    if facts.base.spec.serving.replicas == 0:
        return None
    if not served.pods:
        there = [p for p in facts.seen.pods_of(served.revision) if not p.deleting]
        return pods_missing(there, f"no pod of {served.version} is ready")
    left = [at.adapter for at in facts.adapters if not served.is_verified(at.adapter.served_name)]
    for adapter in left:
        digest = served.digests.get(adapter.served_name)
        why = served.refusals.get((adapter.served_name, digest)) if digest else None
        if why is not None:
            return stalled(c.VERIFICATION_FAILED, f"{adapter.metadata.name}: {why}")
    if left:
        text = f"{len(left)} of {len(facts.adapters)} adapters are not verified on every ready pod"
        return working(c.VERIFYING, text, POLL_S)
    return None


def _conditions(facts: BaseFacts, verdict: Verdict | None, passed: int) -> tuple[c.Condition, ...]:
    base, served, total = facts.base, facts.served, len(facts.adapters)
    out = Conditions(base.status.conditions, base.metadata.generation, facts.seen.stamp)
    if served.pods:
        out.set(c.READY, True, c.SERVING, f"{len(served.pods)} ready pods answer with version {served.version}")
    else:
        why = verdict or working(c.NOT_SERVED_YET, "no pod is wished for")
        out.set(c.READY, False, why.reason, why.message)
    if verdict is None:
        out.set(c.UP_TO_DATE, True, c.VERSION_SERVED, f"version {served.version} is served with {total} adapters")
    else:
        out.set(c.UP_TO_DATE, False, verdict.reason, verdict.message)
    wished = facts.versions.known[base.spec.version]
    if isinstance(wished, Verdict):
        out.set(c.SOURCE_READY, False, wished.reason, wished.message)
    else:
        out.set(c.SOURCE_READY, True, c.FETCHED, f"version {base.spec.version} is {wished}")
    if passed == total:
        out.set(
            c.ADAPTERS_READY, True, c.ALL_ADAPTERS_PASSED, f"{total} adapters have a variant for the wished version"
        )
    else:
        why = next(at.verdict for at in facts.adapters if at.passing is None) or working(c.ADAPTING, "on the way")
        text = f"{passed} of {total} adapters have a variant for {base.spec.version}"
        reason = why.reason if facts.failed else c.WAITING_FOR_ADAPTERS
        out.set(c.ADAPTERS_READY, False, reason, text)
    _rolled_out(out, facts, verdict)
    if verdict is not None and verdict.state is State.STALLED:
        out.stalled(verdict.reason, verdict.message)
    elif verdict is not None and verdict.state is State.WORKING:
        out.reconciling(verdict.reason, verdict.message)
    return out.done()


def _rolled_out(out: Conditions, facts: BaseFacts, verdict: Verdict | None) -> None:
    left = facts.rollout.verdict
    if facts.target is not None and left is None and facts.rollout.served == facts.target.revision:
        out.set(c.ROLLED_OUT, True, c.SWITCHED, f"the Service selects revision {facts.rollout.served}")
        return
    why = left or verdict or working(c.ROLLING_OUT, "the wished revision is not served yet")
    out.set(c.ROLLED_OUT, False, why.reason, why.message)


def _upgrade(facts: BaseFacts, verdict: Verdict | None) -> UpgradeStatus:
    """A record: begun when a version is first wished for, finished when everything of it is there."""
    before = facts.base.status.upgrade
    wished = facts.base.spec.version
    if before is None or before.to_version != wished:
        before = UpgradeStatus(started_at=facts.seen.stamp, from_version=facts.base.status.version, to_version=wished)
    if verdict is None and before.finished_at is None:
        return before.model_copy(update={"finished_at": facts.seen.stamp})
    return before


def _selector(base: BaseModelResource, revision: str | None) -> str | None:
    return f"{labels.BASE}={base.metadata.name},{labels.REVISION}={revision}" if revision else None


def _sample(at: AdapterPass) -> FailureSample:
    verdict = at.verdict or stalled("", "")
    return FailureSample(
        adapter=at.adapter.metadata.name,
        reason=verdict.reason,
        message=shorten(verdict.message, _SAMPLE_CHARS),
    )


def _state(at: AdapterPass) -> State | None:
    return at.verdict.state if at.verdict else None
