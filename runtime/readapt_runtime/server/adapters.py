"""The adapters of this pod: who answers under a name, how far each generation has come, and who still uses it.

    Pending --register--> Registered --probe--> Verified
       \\___________________\\__________________> Failed (reason, message)

A generation is one variant under one name. A request pins the generation that will compute its whole answer; a
desired-set change, or loading by hand, makes a new generation current and retires the old one, which goes when its last
pin does. All methods run on the event loop; reading and checking weights happens in worker threads, one at a time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from itertools import count
from typing import Any, Protocol

from readapt_api.artifacts import Probe
from readapt_api.contract import Digest
from readapt_api.errors import ReadaptError, Terminal, Transient
from readapt_api.serving import AdapterState, DesiredAdapter
from readapt_runtime.daemon_threads import to_daemon_thread
from readapt_runtime.engine.core import Variant
from readapt_runtime.server.generation import NOT_ASKED, Generation
from readapt_runtime.server.registration import Registered, Source
from readapt_runtime.server.verification import ProbeMismatch, Verdict

log = logging.getLogger(__name__)

RETRY_DELAYS_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Waits after a Transient error of registration; then the generation fails until a newer set asks again."""


class NoSuchAdapter(Terminal):
    """No adapter of this name is in the desired set."""


_Advance = Callable[["Generation"], Coroutine[Any, Any, None]]


class Verifies(Protocol):
    async def verify(self, variant: Variant, probe: Probe | None) -> Verdict: ...


class AdapterTable:
    """See the module."""

    def __init__(
        self,
        source: Source,
        verifier: Verifies,
        forget: Callable[[Variant], None],
        preload: Callable[[Variant, bool], None] = lambda variant, on: None,
        reserved: str = "",
    ) -> None:
        """``reserved`` is the name of the base: an adapter that claims it fails."""
        self.reserved = reserved
        self._source = source
        self._verifier = verifier
        self._forget = forget
        self._preload = preload
        self._current: dict[str, Generation] = {}
        self._alive: set[Generation] = set()  # current ones, and retired ones that are still pinned
        self._numbers = count(1)
        self._asked = count()
        # one bell per line of work: a shared one would be cleared by the line that has nothing to do
        self._bells = {AdapterState.PENDING: asyncio.Event(), AdapterState.REGISTERED: asyncio.Event()}

    def apply(self, adapters: Iterable[DesiredAdapter]) -> None:
        """Makes these current, beside what was loaded by hand under other names.

        Equal (name, digest) keep their generation, failed ones start again.
        """
        by_name = {a.name: a for a in adapters}
        wanted = {a.name: a.digest for a in by_name.values()}
        for name, old in list(self._current.items()):
            if old.by_hand and name not in wanted:
                continue
            if wanted.get(name) != old.digest or old.state is AdapterState.FAILED:
                self._retire(self._current.pop(name))
        for name, digest in wanted.items():
            if name in self._current:
                self._current[name].by_hand = False
            else:
                self._begin(name, digest)
            self._treat(self._current[name], by_name[name])
        self._wake()

    def _treat(self, generation: Generation, wish: DesiredAdapter) -> None:
        """Takes over how the adapter is to be treated; running requests keep the priority they came with."""
        generation.priority = wish.priority or 0
        preload = bool(wish.preload)
        if generation.variant is not None and preload != generation.preload:
            self._preload(generation.variant, preload)
        generation.preload = preload

    def _begin(self, name: str, digest: Digest) -> Generation:
        generation = Generation(name, digest, next(self._numbers))
        self._current[name] = generation
        self._alive.add(generation)
        if name == self.reserved:
            self._settle(generation, AdapterState.FAILED, "NameConflict", "this is the name of the base")
        return generation

    def find(self, name: str) -> Generation | None:
        """The current one, if there is one."""
        return self._current.get(name)

    def install(self, name: str, digest: Digest, registered: Registered) -> None:
        """Makes a variant current that was registered by hand; the generation before it goes with its last pin."""
        self.remove(name)
        generation = self._begin(name, digest)
        generation.by_hand = True
        self._equip(generation, registered)
        self._wake()

    def remove(self, name: str) -> None:
        """Nobody answers under ``name`` from now on; what is being answered is finished."""
        if (old := self._current.pop(name, None)) is not None:
            self._retire(old)

    def pin(self, name: str) -> Generation:
        """The generation that answers under ``name`` from now on; each call needs one ``unpin``."""
        generation = self._current.get(name)
        if generation is None:
            raise NoSuchAdapter(f"the model {name!r} does not exist")
        generation.pins += 1
        if generation.asked == NOT_ASKED:
            generation.asked = next(self._asked)
        return generation

    def unpin(self, generation: Generation) -> None:
        generation.pins -= 1
        self._drop_unused(generation)

    @property
    def generations(self) -> tuple[Generation, ...]:
        """The current ones, by name."""
        return tuple(self._current[name] for name in sorted(self._current))

    async def run(self) -> None:
        """Registers and verifies, for ever: two lines of work that do not wait for each other."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._serve_state(AdapterState.PENDING, self._register))
            group.create_task(self._serve_state(AdapterState.REGISTERED, self._verify))

    async def _serve_state(self, state: AdapterState, advance: _Advance) -> None:
        while True:
            generation = self._next(state)
            if generation is None:
                await self._bells[state].wait()
                self._bells[state].clear()
                continue
            generation.pins += 1  # its weights stay until the work on it is done
            try:
                await advance(generation)
            finally:
                self.unpin(generation)
            self._wake()

    def _next(self, state: AdapterState) -> Generation | None:
        """First requested first, then in the order of arrival."""
        ready = [g for g in self._alive if g.state is state and g.wanted and not g.resting]
        return min(ready, key=lambda g: (g.asked, g.number), default=None)

    async def _register(self, generation: Generation) -> None:
        try:
            registered = await to_daemon_thread(self._source.load, generation.digest)
        except Terminal as error:
            self._settle(generation, AdapterState.FAILED, type(error).__name__, str(error))
        except Transient as error:
            self._rest(generation, error)
        else:
            self._equip(generation, registered)

    def _equip(self, generation: Generation, registered: Registered) -> None:
        generation.variant = Variant(generation.name, generation.digest, registered.image)
        generation.probe = registered.probe
        generation.state = AdapterState.REGISTERED
        generation.message, generation.attempts = "", 0
        if generation.preload:
            self._preload(generation.variant, True)
        log.info("adapter registered", extra={"adapter": generation.label, "rank": registered.image.rank})

    def _rest(self, generation: Generation, error: Transient) -> None:
        """Tries again later, a bounded number of times."""
        generation.message = str(error)
        if generation.attempts >= len(RETRY_DELAYS_S):
            self._settle(generation, AdapterState.FAILED, type(error).__name__, str(error))
            return
        generation.resting = True
        delay = RETRY_DELAYS_S[generation.attempts]
        generation.attempts += 1
        asyncio.get_running_loop().call_later(delay, self._awaken, generation)

    def _awaken(self, generation: Generation) -> None:
        generation.resting = False
        self._wake()

    async def _verify(self, generation: Generation) -> None:
        if generation.variant is None:
            raise RuntimeError(f"{generation.label} is registered without weights")
        try:
            verdict = await self._verifier.verify(generation.variant, generation.probe)
        except Transient as error:
            self._rest(generation, error)
            return
        except ReadaptError as error:
            self._settle(generation, AdapterState.FAILED, type(error).__name__, str(error))
            return
        if verdict.passed:
            self._settle(generation, AdapterState.VERIFIED, "", verdict.message)
        else:
            self._settle(generation, AdapterState.FAILED, ProbeMismatch.__name__, verdict.message)

    def _settle(self, generation: Generation, state: AdapterState, reason: str, message: str) -> None:
        generation.state, generation.reason, generation.message = state, reason, message
        generation.settled.set()
        level = logging.INFO if state is AdapterState.VERIFIED else logging.ERROR
        log.log(level, "adapter %s", state.lower(), extra={"adapter": generation.label, "detail": message})

    def _retire(self, generation: Generation) -> None:
        generation.retired = True
        self._drop_unused(generation)

    def _drop_unused(self, generation: Generation) -> None:
        if generation.wanted or generation not in self._alive:
            return
        self._alive.discard(generation)
        if generation.variant is not None:
            self._forget(generation.variant)
            generation.variant = None

    def _wake(self) -> None:
        for bell in self._bells.values():
            bell.set()
