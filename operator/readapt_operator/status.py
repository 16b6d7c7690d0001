"""The conditions setter (Flux's rules): stamps observedGeneration, moves lastTransitionTime only when the status
changes, keeps Reconciling and Stalled exclusive, and orders them for readers.
"""

from __future__ import annotations

from collections.abc import Iterable

from readapt_api import conditions as c
from readapt_api.conditions import Condition

_ORDER = (c.STALLED, c.RECONCILING, c.READY, c.UP_TO_DATE, c.SOURCE_READY, c.VARIANT_READY, c.ADAPTERS_READY)
_MESSAGE_CHARS = 1000


class Conditions:
    """The conditions of one object, built anew in each pass over the previous ones."""

    def __init__(self, before: Iterable[Condition], generation: int, now: str) -> None:
        self._before = {b.type: b for b in before}
        self._now: dict[str, Condition] = {}
        self._generation = generation
        self._time = now

    def set(self, kind: str, good: bool | None, reason: str, message: str) -> None:
        """``good``: True, False, or None for Unknown."""
        status = "Unknown" if good is None else "True" if good else "False"
        old = self._before.get(kind)
        since = old.last_transition_time if old is not None and old.status == status else self._time
        self._now[kind] = Condition(
            type=kind,
            status=status,  # type: ignore[arg-type]
            reason=reason,
            message=shorten(message, _MESSAGE_CHARS),
            last_transition_time=since,
            observed_generation=self._generation,
        )

    def reconciling(self, reason: str, message: str) -> None:
        """There is work under way."""
        self._now.pop(c.STALLED, None)
        self.set(c.RECONCILING, True, reason, message)

    def stalled(self, reason: str, message: str) -> None:
        """A person must act."""
        self._now.pop(c.RECONCILING, None)
        self.set(c.STALLED, True, reason, message)

    def done(self) -> tuple[Condition, ...]:
        """All that were set in this pass; Stalled or Reconciling first."""
        rank = {kind: i for i, kind in enumerate(_ORDER)}
        return tuple(sorted(self._now.values(), key=lambda x: (rank.get(x.type, len(rank)), x.type)))


def shorten(text: str, limit: int) -> str:
    """``text`` in at most ``limit`` characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def find(conditions: Iterable[Condition], kind: str) -> Condition | None:
    """The condition of a type."""
    return next((x for x in conditions if x.type == kind), None)
