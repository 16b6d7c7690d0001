"""The termination message of a Job: what the operator reads, since it never mounts the store.

In: a ``Summary``. Out: at most ``TERMINATION_MESSAGE_BYTES`` of JSON (the kubelet cuts what is longer, and half a
document is no document). Prose and digits that nobody reads go first, then the rungs that did not decide, Copy the last
of them; digests and verdicts stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from readapt_api.contract import Contract
from readapt_api.digest import canonical_json
from readapt_api.jobs import TERMINATION_MESSAGE_BYTES, JobKind, Outcome, RungResult, Summary

_Model = TypeVar("_Model", bound=Contract)
_MESSAGE = 120
_DIGITS = 6


def to_bytes(summary: Summary) -> bytes:
    """The JSON of the summary, or of the fullest shortened one that fits.

    Outcomes that still do not fit are left out from the end; the operator runs the Job again for what it misses and
    gets the recorded results.
    """
    encoded = canonical_json(summary.to_wire())
    for shorter in _shorter(summary):
        if len(encoded) <= TERMINATION_MESSAGE_BYTES:
            break
        encoded = canonical_json(shorter.to_wire())
    return encoded


def write(summary: Summary, path: Path) -> bytes:
    """Leaves the message at ``path``; returns it. A container runtime provides the file, other places may not."""
    encoded = to_bytes(summary)
    path.write_bytes(encoded)
    return encoded


def failure(kind: JobKind, error: Exception) -> Summary:
    """What went wrong: the error's class as the reason, its text as the message."""
    text = str(error) or type(error).__name__
    return Summary(kind=kind, ok=False, reason=type(error).__name__, message=clip(text, 800))


def clip(text: str, length: int) -> str:
    """At most ``length`` characters; what was cut shows."""
    return text if len(text) <= length else text[: length - 1] + "…"


def _shorter(summary: Summary) -> Iterator[Summary]:
    """Ever shorter versions; the last ones leave outcomes out."""
    steps: tuple[Callable[[Outcome], Outcome], ...] = (
        _clip_messages,
        _keep_outer_rungs,
        _keep_last_rung,
        _without_prose,
    )
    for step in steps:
        summary = _with(summary, outcomes=tuple(step(outcome) for outcome in summary.outcomes))
        yield summary
    while summary.outcomes:
        summary = _with(summary, outcomes=summary.outcomes[:-1], message="some outcomes are left out: too many to list")
        yield summary
    yield _with(summary, message=clip(summary.message, _MESSAGE))


def _clip_messages(outcome: Outcome) -> Outcome:
    rungs = tuple(_clip_rung(rung) for rung in outcome.rungs)
    seconds = round(outcome.repair_seconds, _DIGITS)
    return _with(outcome, rungs=rungs, message=clip(outcome.message, _MESSAGE), repair_seconds=seconds)


def _clip_rung(rung: RungResult) -> RungResult:
    numbers = {name: round(value, _DIGITS) for name, value in rung if isinstance(value, float)}
    ends = {name: round(value, _DIGITS) for name, value in rung.interval}
    return _with(rung, message="", interval=_with(rung.interval, **ends), **numbers)


def _keep_outer_rungs(outcome: Outcome) -> Outcome:
    """What Copy would have cost, and what decided."""
    return _with(outcome, rungs=(*outcome.rungs[:-1][:1], *outcome.rungs[-1:]))


def _keep_last_rung(outcome: Outcome) -> Outcome:
    return _with(outcome, rungs=outcome.rungs[-1:], message=clip(outcome.message, _MESSAGE // 2))


def _without_prose(outcome: Outcome) -> Outcome:
    return _with(outcome, rungs=(), message="")


def _with(model: _Model, **changes: object) -> _Model:
    return model.model_copy(update=changes)
