"""How far a running Job is, as the tail of its pod's log tells.

In: the JSON lines that Jobs write to standard error (``readapt_runtime.progress``). Out: ``43%`` in a ``JobView``. Read
at most every half minute, and never needed: a log that cannot be read changes nothing.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace

from readapt_api.errors import ReadaptError
from readapt_operator.decide.jobs import PROGRESS_S, TELLING
from readapt_operator.kube.port import Kube
from readapt_operator.kube.resources import Doc
from readapt_operator.memory import Memory
from readapt_operator.observed import JobView

log = logging.getLogger(__name__)
_TAIL_LINES = 40


async def with_progress(job: JobView, pods: Sequence[Doc], kube: Kube, memory: Memory) -> JobView:
    """The view of a Job that runs for an adapter with what it last told about itself."""
    meta = job.body["metadata"]
    if not (job.active and job.running) or job.kind not in TELLING:
        return job
    fact, told = ("progress", meta["uid"]), None
    running = [pod["metadata"]["name"] for pod in pods if (pod.get("status") or {}).get("phase") == "Running"]
    if running and memory.due(fact, PROGRESS_S):
        try:
            told = percent_in((await kube.log(meta["namespace"], running[-1], "job", _TAIL_LINES)).splitlines())
        except ReadaptError as error:
            log.debug("log of %s: %s", running[-1], error)
    return replace(job, progress=memory.last_text(fact, told))


def percent_in(lines: Iterable[str]) -> str | None:
    """The last progress among ``lines``; what is no line of ours is passed over."""
    percents = [percent for line in lines if (percent := _percent(line)) is not None]
    return f"{percents[-1]}%" if percents else None


def _percent(line: str) -> int | None:
    try:
        said = json.loads(line)
    except ValueError:
        return None
    if not isinstance(said, dict) or said.get("event") != "progress":
        return None
    percent = said.get("percent")
    return percent if isinstance(percent, int) and 0 <= percent <= 100 else None
