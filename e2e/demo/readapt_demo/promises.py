"""What a run of the demo has to show; a promise that was not kept is one line for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

ROLLBACK_S = 60.0
WHOLE_S = 20 * 60.0
"""From the first apply to the last answer that is judged, without set-up, on two cores that multiply bf16 natively; on
others a repair takes several times as long."""
REPAIRS = ("Transported", "ReLoRA")
COPY_LOSS = 0.04
"""A copied adapter loses at least four points of accuracy to the move."""


def broken(report: Mapping[str, Any], *, generated: bool) -> list[str]:
    """The broken promises of a report; ``generated``: both tasks are the demo's own, known to suffer from the move."""
    rows = [line for row in report["adapters"] for line in _adapter(row)] if generated else []
    seconds, bounded = sum(step["seconds"] for step in report["steps"]), generated and report["native_bf16"]
    slow = [f"the demo took {seconds:.0f} s, {WHOLE_S:.0f} s are allowed"] if bounded and seconds > WHOLE_S else []
    return [*_traffic(report), *rows, *slow]


def _traffic(report: Mapping[str, Any]) -> Iterator[str]:
    requests = report["requests"]
    if not requests["sent"]:
        yield "no request was sent"
    if requests["failed"]:
        yield f"{requests['failed']} of {requests['sent']} requests failed"
    if report["mixed_sets"]:
        yield f"{report['mixed_sets']} answers came from a mixed set"
    if not requests["telling"]:
        yield "no answer could have shown a mixed set: no model's sets were compared"
    for model, count in requests["telling"].items():
        if not count:
            yield f"no answer of {model} could have shown a mixed set: both sets answer alike"
    for revision, count in requests["by_set"].items():
        if not count:
            yield f"set {revision} answered nobody, so nothing shows that it was served"
    for connection, count in requests["by_connection"].items():
        if not count:
            yield f"the client with a {connection} connection got no answer"
    if report["rollback_jobs"]:
        yield f"the roll-back started {report['rollback_jobs']} Jobs"
    if report["rollback_seconds"] >= ROLLBACK_S:
        yield f"the roll-back took {report['rollback_seconds']} s, {ROLLBACK_S:.0f} s are allowed"


def _adapter(row: Mapping[str, Any]) -> Iterator[str]:
    if row["origin"] not in REPAIRS:
        yield f"{row['name']}: the variant's origin is {row['origin']}, which is no repair"
    elif row["gate"] != "GatePassed":
        yield f"{row['name']}: the gate and the retention say {row['gate']}"
    elif row["retention"] is None:
        yield f"{row['name']}: retention was not measured, so nothing shows that the upgrade is left"
    elif row["score_copy"] is None:
        yield f"{row['name']}: Copy was not tried, so nothing shows what the move costs"
    elif row["score_copy"] > row["score_before"] - COPY_LOSS:
        yield f"{row['name']}: Copy scored {row['score_copy']}, less than four points below {row['score_before']}"
