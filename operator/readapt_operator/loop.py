"""The life of an object: observe -> decide -> act -> report. One pass per key at a time; anything that goes wrong is
logged, counted and tried again later."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from readapt_api.errors import ReadaptError
from readapt_operator.act import act
from readapt_operator.decide.base import decide
from readapt_operator.kube.port import Kube
from readapt_operator.kube.resources import BASE_MODELS, LORA_ADAPTERS, Doc
from readapt_operator.observe import Observer
from readapt_operator.observed import UnreadableBase, stamp_of
from readapt_operator.pods import PodAdmin
from readapt_operator.queue import Key, WorkQueue
from readapt_operator.report import report, report_unreadable
from readapt_operator.settings import Settings

log = logging.getLogger(__name__)
PASS_LIMIT_S = 120.0
_IDLE_S = 5.0
_LONGEST_S = 60.0


class PassFailed(Exception):
    """A write of the pass failed; the others were tried, the status was reported."""


@dataclass(slots=True)
class Loop:
    """Workers and resync over one queue."""

    kube: Kube
    pods: PodAdmin
    observer: Observer
    queue: WorkQueue
    settings: Settings
    clock: Callable[[], float]
    may_write: Callable[[], bool]
    """Whether the lease is held: without it nothing is even looked at."""
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    passes: int = 0
    failures: int = 0
    bugs: int = 0
    """Decisions about single adapters that raised what nobody foresaw."""
    last_beat: float = 0.0
    last_resync: float | None = None

    async def reconcile(self, key: Key) -> float | None:
        """One pass; returns when the next one is due at the latest."""
        try:
            seen = await self.observer.observe(key)
        except UnreadableBase as error:
            await report_unreadable(error.body, error.why, stamp_of(self.observer.now()), self.kube)
            raise
        plan = decide(seen)
        self._tell(key, plan.bugs)
        outcome = await act(key, plan.actions, self.kube, self.pods)
        await report(seen, plan, outcome, self.kube)
        if outcome.errors:
            raise PassFailed(f"{len(outcome.errors)} writes failed, the first with: {outcome.errors[0]}")
        return plan.again_s

    def _tell(self, key: Key, bugs: Mapping[str, Exception]) -> None:
        """The pass goes on: its other adapters must not wait for a bug to be mended."""
        self.bugs += len(bugs)
        for name, bug in bugs.items():
            log.error("%s: a bug in the decision about LoRAAdapter %s", key, name, exc_info=bug)

    async def work(self) -> None:
        """Takes keys for ever. Any exception is caught here; one in the decision about an adapter costs that alone."""
        while True:
            self.last_beat = self.clock()
            key = self.queue.take() if self.may_write() else None
            if key is None:
                await self._rest()
                continue
            try:
                async with asyncio.timeout(PASS_LIMIT_S):
                    again_s = await self.reconcile(key)
            except Exception as error:
                self.failures += 1
                log.warning("%s: the pass failed: %r", key, error, exc_info=not _is_expected(error))
                log.info("%s: again in %.1f s", key, self.queue.fail(key))
            else:
                self.passes += 1
                self.queue.finish(key, again_s)

    def add(self, key: Key, delay_s: float) -> None:
        """For events: a pass soon; a burst of events is one pass."""
        self.queue.add(key, delay_s)
        self.wake.set()

    async def resync(self) -> None:
        """Everything gets a pass every few minutes: events can be lost, and nothing depends on them."""
        while True:
            if self.may_write() and await self._list_all():
                self.last_resync = self.clock()
                await asyncio.sleep(self.settings.resync_s)
            else:
                await asyncio.sleep(min(1.0, self.settings.resync_s))

    async def _list_all(self) -> bool:
        try:
            async with asyncio.timeout(PASS_LIMIT_S):
                keys = [key for namespace in self.settings.namespaces or (None,) for key in await self._keys(namespace)]
        except (ReadaptError, TimeoutError) as error:
            log.warning("resync failed: %r", error)
            return False
        spread_s = min(5.0, 0.01 * len(keys))
        for key in keys:
            self.add(key, random.uniform(0.0, spread_s))
        return True

    async def _keys(self, namespace: str | None) -> set[Key]:
        bases = await self.kube.list(BASE_MODELS, namespace)
        adapters = await self.kube.list(LORA_ADAPTERS, namespace)
        return {key for key in map(key_of, (*bases, *adapters)) if key is not None}

    async def _rest(self) -> None:
        """Until something is added, the next key is due, or it is time for a heartbeat."""
        # In this order: what is added from here on wakes, what was added before is due.
        self.wake.clear()
        due_s = self.queue.next_due_s()
        pause = min(_IDLE_S, _IDLE_S if due_s is None else due_s, 0.2 if not self.may_write() else _IDLE_S)
        try:
            async with asyncio.timeout(max(0.005, pause)):
                await self.wake.wait()
        except TimeoutError:
            return


def _is_expected(error: Exception) -> bool:
    """What needs no stack trace."""
    return isinstance(error, (PassFailed, ReadaptError, TimeoutError))


def key_of(body: Doc) -> Key | None:
    """The key of a BaseModel or LoRAAdapter."""
    meta = body["metadata"]
    name = meta["name"]
    if body.get("kind") == LORA_ADAPTERS.kind:
        name = body.get("spec", {}).get("baseModelRef", {}).get("name")
    return Key(meta["namespace"], name) if name else None
