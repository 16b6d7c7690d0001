"""How fast prompts are computed, for judging whether a first token can still come in time."""

from __future__ import annotations

_KEPT = 0.8


class Pace:
    """Seconds per prompt token: a moving average over the steps that had prompts, the decoding beside them included."""

    def __init__(self) -> None:
        self._per_token = 0.0

    def note(self, tokens: int, seconds: float) -> None:
        """A step took ``seconds`` with ``tokens`` prompt tokens in it; none says nothing."""
        if tokens:
            latest = seconds / tokens
            self._per_token = _KEPT * self._per_token + (1 - _KEPT) * latest if self._per_token else latest

    def seconds(self, tokens: int) -> float:
        """What ``tokens`` prompt tokens will take at least; 0 before anything was measured."""
        return self._per_token * tokens
