"""The ladder: which rung comes next, and what its results amount to. Pure.

Cheapest first, stopping at the first rung that passes the gate and keeps the retention floor. Every rung tests once,
with its share of the error budget.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from readapt_api.adaptation import Policy
from readapt_api.artifacts import Origin
from readapt_api.conditions import GATE_FAILED, GATE_PASSED, GATE_UNDECIDED, RETENTION_TOO_LOW
from readapt_api.jobs import GateVerdict, RungResult
from readapt_runtime.adapt.data import Splits
from readapt_runtime.adapt.gate import Decision
from readapt_runtime.examples import BadData

RUNGS: Mapping[Policy, tuple[Origin, ...]] = {
    Policy.AUTO: (Origin.COPIED, Origin.TRANSPORTED, Origin.RELORA, Origin.REFRESHED, Origin.RETRAINED),
    Policy.COPY: (Origin.COPIED,),
    Policy.TRANSPORT: (Origin.TRANSPORTED,),
    Policy.RELORA: (Origin.RELORA,),
    Policy.REFRESH: (Origin.REFRESHED,),
    Policy.RETRAIN: (Origin.RETRAINED,),
}
_NEED_LABELS = (Origin.RELORA, Origin.RETRAINED)
VERDICTS = {
    Decision.PASS: GateVerdict.PASSED,
    Decision.FAIL: GateVerdict.FAILED,
    Decision.MORE: GateVerdict.UNDECIDED,
    Decision.FUTILE: GateVerdict.UNDECIDED,
}


def rungs_of(policy: Policy, splits: Splits, learned: bool = False) -> tuple[Origin, ...]:
    """In order; those of the policy that can be climbed with the examples. Raises BadData where they are too few.

    An adapter that ``learned`` task after task has its magnitudes fitted before its directions are touched.
    """
    rungs = tuple(origin for origin in RUNGS[policy] if splits.labelled or origin not in _NEED_LABELS)
    if not rungs:
        raise BadData(
            f"policy {policy} needs train and validation; with inputs alone there are Copy, Transport and Refresh"
        )
    if rungs != (Origin.COPIED,):
        splits.require_tuning()
    if learned and splits.choices and Origin.RELORA in rungs:
        at = 1 if rungs[0] is Origin.COPIED else 0
        return (*rungs[:at], Origin.REFITTED, *rungs[at:])
    return rungs


def next_rung(rungs: Sequence[Origin], done: Sequence[RungResult]) -> Origin | None:
    """The rung to try now; None when one has passed or none is left."""
    if done and passes(done[-1]):
        return None
    return next(iter(rungs[len(done) :]), None)


def passes(rung: RungResult) -> bool:
    """The gate passed and the base update is still there."""
    return rung.verdict is GateVerdict.PASSED and keeps_update(rung)


def keeps_update(rung: RungResult) -> bool:
    """Without a floor, or where retention cannot be measured, it constrains nothing."""
    return rung.retention_floor is None or rung.retention is None or rung.retention >= rung.retention_floor


def reason(rungs: Sequence[RungResult]) -> str:
    """The reason of the last rung, which decided."""
    last = rungs[-1]
    if last.verdict is GateVerdict.PASSED:
        return GATE_PASSED if keeps_update(last) else RETENTION_TOO_LOW
    return GATE_FAILED if last.verdict is GateVerdict.FAILED else GATE_UNDECIDED


def message(rung: RungResult, margin: float) -> str:
    """One sentence for people. Differences are gains: negative is worse, whatever the metric's direction."""
    metric, unit = rung.metric, rung.metric.unit
    scores = f"{metric} {unit.score(rung.score)} against {unit.score(rung.reference)}"
    gain = f"gain {unit.difference(metric.gain(rung.score, rung.reference))} {unit.name} on {rung.samples} examples"
    span = f"interval {unit.difference(rung.interval.lower)} to {unit.difference(rung.interval.upper)}"
    text = f"{rung.origin}: {scores}, {gain}, {span}, allowed {unit.difference(-margin)}"
    if not keeps_update(rung):
        return f"{text}; retention {rung.retention:.2f} is below {rung.retention_floor:.2f}"
    if rung.verdict is GateVerdict.UNDECIDED:
        needed = f", about {rung.samples_needed} examples would pass it" if rung.samples_needed else ""
        return f"{text}; undecided{_left(rung)}{needed}"
    return text


def _left(rung: RungResult) -> str:
    """Why an exam ended before its last example."""
    if rung.samples_left is None:
        return ""
    return f" after {rung.samples} of {rung.samples + rung.samples_left}: the others would hardly make it pass"
