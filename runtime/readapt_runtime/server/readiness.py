"""When this pod may get traffic: once everything that it found at start is there, and until it is told to end.

``/readyz`` judges the set read at process start, then latches: later additions never un-ready a pod, and neither
does a drain, because the Service has moved before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from readapt_api.serving import AdapterState
from readapt_runtime.server.generation import Generation


@dataclass(eq=False, slots=True)
class Readiness:
    """Mutable state of one process."""

    awaited: Sequence[Generation] | None = None
    """The generations of the first set; None while no set has been read."""
    terminating: bool = False
    draining: bool = False
    _latched: bool = field(default=False, init=False)

    def await_first(self, generations: Sequence[Generation]) -> None:
        """The first set decides what is waited for; later ones change nothing."""
        if self.awaited is None:
            self.awaited = tuple(generations)

    @property
    def closing(self) -> bool:
        """Whether connections should go away after their next answer."""
        return self.draining or self.terminating

    @property
    def ready(self) -> bool:
        if not self._latched and self.awaited is not None:
            self._latched = all(_has_arrived(g) for g in self.awaited)
        return self._latched and not self.terminating

    def explain(self) -> str:
        if self.terminating:
            return "terminating"
        if self.awaited is None:
            return "waiting for the desired set"
        missing = [g.name for g in self.awaited if not _has_arrived(g)]
        return f"waiting for {len(missing)} adapters, such as {missing[0]}" if missing else "ready"


def _has_arrived(generation: Generation) -> bool:
    """Registered (one to be preloaded: verified), failed with a reason, or no longer wanted."""
    waits = {AdapterState.PENDING, AdapterState.REGISTERED} if generation.preload else {AdapterState.PENDING}
    return generation.state not in waits or generation.retired
