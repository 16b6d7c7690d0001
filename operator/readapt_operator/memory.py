"""What this process alone knows: since when it has seen something. Lost on restart, then waited for again.

Durations are measured here and not taken from stamps of other machines, whose clocks may differ.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable

from readapt_api.serving import PodState

STATE_KEPT_S = 30.0


class Memory:
    """Monotonic first-seen times, and the last that each pod told or was told to wait for; of one base."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since: dict[Hashable, float] = {}
        self._states: dict[str, tuple[float, PodState]] = {}
        self._texts: dict[Hashable, str] = {}

    def age_s(self, fact: Hashable, holds: bool = True) -> float | None:
        """Seconds since ``fact`` was first seen to hold without a break; None when it does not hold."""
        if not holds:
            self._since.pop(fact, None)
            return None
        return self._clock() - self._since.setdefault(fact, self._clock())

    def due(self, fact: Hashable, every_s: float) -> bool:
        """Whether ``every_s`` have passed since this was last true of ``fact``."""
        last = self._since.get(fact)
        if last is not None and self._clock() - last < every_s:
            return False
        self._since[fact] = self._clock()
        return True

    def last_text(self, fact: Hashable, text: str | None) -> str:
        """``text``, or what it was when there last was one."""
        if text is not None:
            self._texts[fact] = text
        return self._texts.get(fact, "")

    def remember(self, uid: str, state: PodState) -> None:
        self._states[uid] = (self._clock(), state)

    def state_of(self, uid: str) -> PodState | None:
        """What the pod said lately: one lost answer does not make its adapters unverified."""
        told = self._states.get(uid)
        return told[1] if told is not None and self._clock() - told[0] <= STATE_KEPT_S else None

    def forget_all_but(self, facts: Iterable[Hashable], uids: Iterable[str]) -> None:
        """Bounds the memory by what there still is."""
        facts, uids = set(facts), set(uids)
        self._since = {k: v for k, v in self._since.items() if k in facts}
        self._states = {k: v for k, v in self._states.items() if k in uids}
        self._texts = {k: v for k, v in self._texts.items() if k in facts}
