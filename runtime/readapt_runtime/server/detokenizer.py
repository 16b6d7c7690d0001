"""Token by token to text: nothing is shown before it is final, nothing is lost at the end.

A character may span several tokens, and a token's text may depend on its left neighbour (leading spaces). So a
window of recent tokens is decoded with and without the new ones, and text that ends inside a character is held back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """The pieces that ``push`` and ``flush`` return add up to the text of all tokens."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        self._context = 0  # the window starts here
        self._shown = 0  # tokens before this are in the text already

    def push(self, token: int) -> str:
        """The text that became final with this token, often empty inside a character."""
        self._tokens.append(token)
        return self._advance(final=False)

    def flush(self) -> str:
        """What was held back, as it is."""
        return self._advance(final=True)

    def _advance(self, final: bool) -> str:
        before = self._decode(self._tokens[self._context : self._shown])
        text = self._decode(self._tokens[self._context :])
        if len(text) <= len(before) or (text.endswith(_UNFINISHED) and not final):
            return ""
        self._context, self._shown = self._shown, len(self._tokens)
        return text[len(before) :]


class StopFinder:
    """Looks for stop strings in a growing text and holds back what could be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """The text that can be shown; the stop string and what follows it never is."""
        text = self._held + piece
        at = min((i for i in (text.find(s) for s in self._stops) if i >= 0), default=None)
        if at is not None:
            self.found = True
            self._held = ""
            return text[:at]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that is a proper beginning of ``stop``."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
