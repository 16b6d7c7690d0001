"""Real ``adapt`` Jobs over one base move: all adapters as items of one, or a Job for each, in CPU seconds.

In: a store with everything that the request of all items names. Every Job works on its own copy of a store, of hard
links because a store never changes what it has: the one Job on what was published, a single one on what the Job before
it left, as it would find it in a cluster. A Job is one JSON file in the output folder and is not run again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter
from stopwatch import Stopwatch

from readapt_api.artifacts import ArtifactKind, FactorBlock
from readapt_api.contract import Digest
from readapt_api.jobs import AdaptItem, AdaptRequest, DriftRequest, Outcome
from readapt_runtime.jobs import adapt, drift
from readapt_runtime.progress import Log
from readapt_runtime.store import Store


@dataclass(frozen=True, slots=True)
class Job:
    """One that has ended."""

    seconds: float
    """CPU seconds of the process, loading both bases included."""
    outcomes: tuple[Outcome, ...]


_JOB = TypeAdapter(Job)


def publish_move(store: Store, old: Path, new: Path, log: Log) -> tuple[DriftRequest, Digest, float]:
    """Both bases and what the drift Job makes of them, with its CPU seconds."""
    bases = [store.publish(ArtifactKind.BASE, folder).digest for folder in (old, new)]
    request, watch = DriftRequest(old_base=bases[0], new_base=bases[1]), Stopwatch(log)
    return request, drift.run(request, store, log).digest, watch.seconds()


def publish_adapter(store: Store, folder: Path, base: Digest, rank: int) -> Digest:
    """A PEFT folder as a variant of ``base``."""
    return store.publish(ArtifactKind.VARIANT, folder, base=base, rank=rank, blocks=(FactorBlock(),)).digest


@dataclass(frozen=True, slots=True)
class Jobs:
    """Of one request."""

    request: AdaptRequest
    published: Path
    """The store."""
    out: Path
    log: Log

    def together(self) -> Job:
        return self._job("together", self.request.items, self.published)

    def one_by_one(self) -> list[Job]:
        return list(self._singles())

    def _singles(self) -> Iterator[Job]:
        left = self.published
        for number, item in enumerate(self.request.items):
            yield self._job(f"alone-{number}", (item,), left)
            left = self._store(f"alone-{number}")

    def _job(self, name: str, items: Sequence[AdaptItem], before: Path) -> Job:
        """Out of its file, else run; what a stopped one had begun is begun anew."""
        file = self.out / f"{name}.json"
        if not file.is_file():
            folder = self._store(name)
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(before, folder, copy_function=os.link)
            request, watch = self.request.model_copy(update={"items": tuple(items)}), Stopwatch(self.log)
            outcomes = adapt.run(request, Store(folder), self.log)
            begun = file.with_suffix(".new")
            begun.write_bytes(_JOB.dump_json(Job(watch.seconds(), outcomes)))
            begun.rename(file)
        return _JOB.validate_json(file.read_bytes())

    def _store(self, name: str) -> Path:
        return self.out / ".stores" / name


def differing(together: Job, singles: Sequence[Job]) -> list[str]:
    """Names of the items that came to another variant, or by another rung, than in a Job of their own."""
    alone = [outcome for job in singles for outcome in job.outcomes]
    pairs = zip(together.outcomes, alone, strict=True)
    return [one.name for one, other in pairs if (one.variant, one.origin) != (other.variant, other.origin)]
