"""From a wish for work to at most one running Job: attempts, delays, final failures, slots."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from readapt_api import conditions as c
from readapt_api import labels
from readapt_api.jobs import AdaptRequest, JobKind, Outcome, Summary
from readapt_api.v1alpha1.base_model import BaseModelResource
from readapt_operator.builders.job import Task, build_job, build_request
from readapt_operator.decide.plan import Action, Create, Delete, StartJob, Verdict, stalled, working
from readapt_operator.observed import JobView, Observed

MAX_RETRY_S = 300.0
START_POLL_S = 5.0
"""No event tells why a Job's pod does not start."""
TELLING = (JobKind.ADAPT, JobKind.EXTRACT, JobKind.TRAIN, JobKind.LEARN)
"""They work for an adapter for minutes, and their logs tell how far they are."""
PROGRESS_S = 30.0
"""At most so often is a log read; no event tells that it has grown."""


@dataclass(frozen=True, slots=True)
class Wording:
    """How the state of one piece of work is told."""

    running: str
    """Reason while it runs."""
    failed: str
    """Reason when it is refused."""
    what: str
    """``fetching version v2``."""


@dataclass(frozen=True, slots=True)
class Start:
    """An attempt that is due."""

    task: Task
    attempt: int


@dataclass(frozen=True, slots=True)
class Errand:
    """Where a piece of work stands: done with a summary, or why not; ``start`` when an attempt is due."""

    task: Task
    job: str = ""
    """Name of the Job that did it, or tries to."""
    summary: Summary | None = None
    verdict: Verdict | None = None
    start: Start | None = None

    @property
    def outcome(self) -> Outcome | None:
        """What came of this work, among all that its Job did."""
        return self.summary.outcome(self.task.input_hash) if self.summary else None


def pursue(task: Task, seen: Observed, max_attempts: int, wording: Wording) -> Errand:
    """Judges the attempts that there are; a Job's success counts only with the summary that its pod left."""
    mine = [j for j in seen.jobs.get(task.wish, ()) if j.wish == task.wish or j.active or _tells_of(j, task)]
    done = next((j for j in mine if j.succeeded and j.summary is not None and j.summary.ok), None)
    if done is not None:
        return Errand(task, job=done.name, summary=done.summary)
    if not mine:
        return _start(task, 1, wording)
    last = mine[-1]
    if last.active or last.deleting:
        waits = f" waits: {last.waits}" if last.waits else ""
        again_s = (PROGRESS_S if last.kind in TELLING else None) if last.running else START_POLL_S
        return Errand(
            task, last.name, verdict=working(wording.running, f"{wording.what}: Job {last.name}{waits}", again_s)
        )
    why = _why(last)
    if last.refused or _says_refused(last):
        return Errand(task, last.name, verdict=stalled(wording.failed, f"{wording.what}: {why}"))
    if last.attempt >= max_attempts:
        text = f"{wording.what}: {last.attempt} attempts failed, the last with: {why}"
        return Errand(task, last.name, verdict=stalled(c.JOB_FAILED, text))
    # A lost message is nobody's fault: the Job finds its result in the store at once.
    delay = 0.0 if last.succeeded else min(MAX_RETRY_S, seen.retry_s * 2.0 ** (last.attempt - 1))
    if last.settled_s < delay:
        text = f"{wording.what}: attempt {last.attempt} of {max_attempts} failed, another follows: {why}"
        return Errand(task, last.name, verdict=working(c.RETRYING, text, delay - last.settled_s))
    return _start(task, last.attempt + 1, wording)


def _start(task: Task, attempt: int, wording: Wording) -> Errand:
    verdict = working(wording.running, f"{wording.what}: attempt {attempt} starts")
    return Errand(task, task.name(attempt), verdict=verdict, start=Start(task, attempt))


def _tells_of(job: JobView, task: Task) -> bool:
    """Whether somebody else's Job left a result of this work. One that failed, or had no room to tell, is none of
    its attempts: the work then gets a Job of its own, which finds in the store what was done."""
    return job.succeeded and job.summary is not None and job.summary.outcome(task.input_hash) is not None


def _says_refused(job: JobView) -> bool:
    """A summary that is not ok under exit code 0 cannot be repeated into success."""
    return job.succeeded and job.summary is not None and not job.summary.ok


def _why(job: JobView) -> str:
    if job.summary is not None and (job.summary.message or job.summary.reason):
        return ": ".join(part for part in (job.summary.reason, job.summary.message) if part)
    if job.succeeded:
        return "the Job left no summary"
    failure = job.failure or "the Job failed"
    if job.exit_code is not None:
        return f"{failure} (exit code {job.exit_code})"
    return f"{failure}; its pod waited: {job.waits}" if job.waits else failure


@dataclass(frozen=True, slots=True)
class Schedule:
    """Which of the due attempts start now, which wait, and what is cancelled."""

    actions: tuple[Action, ...]
    waiting: frozenset[str]
    """Names of the Jobs that must wait for a slot."""
    held: frozenset[str]
    """Names of the Jobs that spec.suspend holds back."""


def schedule(seen: Observed, base: BaseModelResource, wished: Iterable[Task], starts: Iterable[Start]) -> Schedule:
    """At most ``maxParallelJobs`` of this base run; Jobs that nobody wishes for any more are deleted.

    One pass per base at a time and consistent lists make the count exact.
    """
    wishes = {task.wish: task for task in wished}
    jobs = {j.name: j for attempts in seen.jobs.values() for j in attempts}
    active = [j for j in jobs.values() if j.active and not j.deleting]
    superseded = [j for j in active if j.wish not in wishes]
    actions: list[Action] = [Delete(j.body, "nobody wishes for its result any more") for j in superseded]
    # Somebody removed it, and the Job's pod waits for it.
    actions += [
        Create(build_request(_with_others(wishes[j.wish], (wishes[w] for w in j.others if w in wishes)), j.attempt))
        for j in active
        if j.lacks_request and j.wish in wishes
    ]
    due = {s.task.name(s.attempt): s for s in starts}
    if base.spec.suspend:
        return Schedule(tuple(actions), frozenset(), frozenset(due))
    free = max(0, base.spec.upgrade.max_parallel_jobs - (len(active) - len(superseded)))
    starts, waiting = _share_out(list(due.values()), free, base.spec.upgrade.adapters_per_job)
    for start in starts:
        request = build_request(start.task, start.attempt)
        actions.append(StartJob(request, build_job(start.task, start.attempt, base, seen.runtime_image)))
    return Schedule(tuple(actions), frozenset(s.task.name(s.attempt) for s in waiting), frozenset())


def _share_out(due: Sequence[Start], free: int, size: int) -> tuple[list[Start], list[Start]]:
    """The attempts that start, and those that wait for a slot.

    What would wait goes along with the shortest Job over the same move that starts now, up to ``size`` adapters each.
    """
    starts, waiting = list(due[:free]), []
    for start in due[free:]:
        fits = [n for n, other in enumerate(starts) if _go_together(start, other) and len(other.task.others) + 1 < size]
        if not fits:
            waiting.append(start)
            continue
        at = min(fits, key=lambda n: len(starts[n].task.others))
        task = starts[at].task
        starts[at] = replace(starts[at], task=_with_others(task, (*task.others, start.task)))
    return starts, waiting


def _go_together(one: Start, two: Start) -> bool:
    """First attempts over one move. A further attempt is alone, so that nobody shares its trouble."""
    first, second = one.task.request, two.task.request
    return (
        one.attempt == two.attempt == 1
        and isinstance(first, AdaptRequest)
        and isinstance(second, AdaptRequest)
        and first.model_copy(update={"items": ()}) == second.model_copy(update={"items": ()})
    )


def _with_others(task: Task, others: Iterable[Task]) -> Task:
    return replace(task, others=tuple(others))


def retry_of(annotations: dict[str, str]) -> str:
    """The user's wish to try again; any new value counts."""
    return annotations.get(labels.RETRY, "")
