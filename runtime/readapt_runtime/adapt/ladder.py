"""The ladder: which rung comes next, and what its results amount to. Pure.

Cheapest first, stopping at the first rung that passes the gate and keeps the retention floor. Every rung tests once,
with its share of the error budget.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from readapt_api.artifacts import Origin
from readapt_api.conditions import GATE_FAILED, GATE_PASSED, GATE_UNDECIDED, RETENTION_TOO_LOW
from readapt_api.jobs import GateVerdict, RungResult
from readapt_runtime.adapt.gate import Decision

RUNGS: Mapping[str, tuple[Origin, ...]] = {
    "Auto": (Origin.COPIED, Origin.RELORA),
    "Copy": (Origin.COPIED,),
    "ReLoRA": (Origin.RELORA,),
}
VERDICTS = {
    Decision.PASS: GateVerdict.PASSED,
    Decision.FAIL: GateVerdict.FAILED,
    Decision.MORE: GateVerdict.UNDECIDED,
}


def next_rung(policy: str, done: Sequence[RungResult]) -> Origin | None:
    """The rung to try now; None when one has passed or none is left."""
    if done and passes(done[-1]):
        return None
    return next(iter(RUNGS[policy][len(done) :]), None)


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
    """One sentence for people."""
    difference = f"{100 * (rung.score - rung.reference):+.1f} points on {rung.samples} examples"
    span = f"interval {100 * rung.interval.lower:+.1f} to {100 * rung.interval.upper:+.1f}"
    text = f"{rung.origin}: {difference}, {span}, allowed {-100 * margin:.1f}"
    if not keeps_update(rung):
        return f"{text}; retention {rung.retention:.2f} is below {rung.retention_floor:.2f}"
    if rung.verdict is GateVerdict.UNDECIDED:
        needed = rung.samples_needed
        return f"{text}; undecided, about {needed} examples would pass it" if needed else f"{text}; undecided"
    return text
