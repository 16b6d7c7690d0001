"""Tokens of one answer to pieces of text: detokenizing, stop strings, and the scores that go with a token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from readapt_runtime.engine.core import FinishReason, Token
from readapt_runtime.server.detokenizer import Detokenizer, StopFinder
from readapt_runtime.server.openai_logprobs import ScoredToken


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that became final; ``finish`` on the last piece of a choice."""

    text: str
    num_tokens: int
    finish: FinishReason | None
    scored: ScoredToken | None = None
    """The token itself, where log-probabilities were asked for; its text may come with a later piece."""


class Choice:
    """One answer in the making."""

    def __init__(self, detokenizer: Detokenizer, stops: Sequence[str]) -> None:
        self._detokenizer = detokenizer
        self._stops = StopFinder(stops)
        self._length = 0  # characters that are decoded, shown or held back
        self.finished = False

    def push(self, token: Token) -> Piece:
        """The end-of-sequence token counts as a token and has no text."""
        text = "" if token.finish is FinishReason.STOP else self._detokenizer.push(token.token_id)
        if token.finish is not None:
            text += self._detokenizer.flush()
        scored = ScoredToken(token.token_id, self._length, token.scores) if token.scores else None
        self._length += len(text)
        shown = self._stops.push(text)
        finish = token.finish
        if self._stops.found:
            finish = FinishReason.STOP
        elif finish is not None:
            shown += self._stops.flush()
        self.finished = finish is not None
        return Piece(shown, 1, finish, scored)
