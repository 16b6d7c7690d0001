"""The documents of the OpenAI API: whole answers, stream chunks, usage."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from readapt_runtime.engine.core import FinishReason
from readapt_runtime.server.openai_logprobs import ScoredToken, chat_logprobs, completion_logprobs
from readapt_runtime.server.pieces import Piece
from readapt_runtime.server.token_names import TokenNames


@dataclass(slots=True)
class Collected:
    """One choice as it grows."""

    text: str = ""
    num_tokens: int = 0
    finish: FinishReason | None = None
    scored: list[ScoredToken] = field(default_factory=list)

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        self.num_tokens += piece.num_tokens
        self.finish = piece.finish
        if piece.scored is not None:
            self.scored.append(piece.scored)

    @classmethod
    def of(cls, piece: Piece) -> Collected:
        alone = cls()
        alone.add(piece)
        return alone


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


@dataclass(frozen=True, slots=True)
class CompletionAnswer:
    """Documents of ``/v1/completions``."""

    model: str
    names: TokenNames
    id: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, choices: Sequence[Collected], prompt_tokens: int) -> dict[str, Any]:
        listed = [self._choice(index, choice) for index, choice in enumerate(choices)]
        return self._document(listed, usage(prompt_tokens, sum(c.num_tokens for c in choices)))

    def opening(self, choice: int) -> dict[str, Any] | None:
        """Completions begin with their text."""
        return None

    def chunk(self, choice: int, piece: Piece) -> dict[str, Any]:
        return self._document([self._choice(choice, Collected.of(piece))])

    def closing(self, prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
        return self._document([], usage(prompt_tokens, completion_tokens))

    def _document(self, choices: list[dict[str, Any]], used: dict[str, int] | None = None) -> dict[str, Any]:
        head = {"id": self.id, "object": "text_completion", "created": self.created, "model": self.model}
        return {**head, "choices": choices, **({} if used is None else {"usage": used})}

    def _choice(self, index: int, choice: Collected) -> dict[str, Any]:
        logprobs = completion_logprobs(choice.scored, self.names)
        return {"index": index, "text": choice.text, "logprobs": logprobs, "finish_reason": choice.finish}


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """Documents of ``/v1/chat/completions``."""

    model: str
    names: TokenNames
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, choices: Sequence[Collected], prompt_tokens: int) -> dict[str, Any]:
        listed = [
            {
                "index": index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": chat_logprobs(choice.scored, self.names),
                "finish_reason": choice.finish,
            }
            for index, choice in enumerate(choices)
        ]
        used = usage(prompt_tokens, sum(c.num_tokens for c in choices))
        return self._document("chat.completion", listed, used)

    def opening(self, choice: int) -> dict[str, Any] | None:
        return self._delta(choice, {"role": "assistant", "content": ""}, Collected())

    def chunk(self, choice: int, piece: Piece) -> dict[str, Any]:
        return self._delta(choice, {"content": piece.text} if piece.text else {}, Collected.of(piece))

    def closing(self, prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
        return self._document("chat.completion.chunk", [], usage(prompt_tokens, completion_tokens))

    def _delta(self, choice: int, delta: dict[str, str], grown: Collected) -> dict[str, Any]:
        logprobs = chat_logprobs(grown.scored, self.names)
        entry = {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": grown.finish}
        return self._document("chat.completion.chunk", [entry])

    def _document(self, kind: str, choices: list[dict[str, Any]], used: dict[str, int] | None = None) -> dict[str, Any]:
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return {**head, "choices": choices, **({} if used is None else {"usage": used})}


Answer = CompletionAnswer | ChatAnswer
