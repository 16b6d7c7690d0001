"""The documents of the OpenAI API: whole answers, stream chunks, usage."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from readapt_runtime.engine.core import FinishReason


@dataclass(slots=True)
class Collected:
    """One choice as it grows."""

    text: str = ""
    num_tokens: int = 0
    finish: FinishReason | None = None


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
    id: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, choices: Sequence[Collected], prompt_tokens: int) -> dict[str, Any]:
        listed = [_completion_choice(i, c.text, c.finish) for i, c in enumerate(choices)]
        return self._document(listed, usage(prompt_tokens, sum(c.num_tokens for c in choices)))

    def opening(self, choice: int) -> dict[str, Any] | None:
        """Completions begin with their text."""
        return None

    def chunk(self, choice: int, text: str, finish: FinishReason | None) -> dict[str, Any]:
        return self._document([_completion_choice(choice, text, finish)])

    def closing(self, prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
        return self._document([], usage(prompt_tokens, completion_tokens))

    def _document(self, choices: list[dict[str, Any]], used: dict[str, int] | None = None) -> dict[str, Any]:
        head = {"id": self.id, "object": "text_completion", "created": self.created, "model": self.model}
        return {**head, "choices": choices, **({} if used is None else {"usage": used})}


def _completion_choice(index: int, text: str, finish: FinishReason | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish}


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """Documents of ``/v1/chat/completions``."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, choices: Sequence[Collected], prompt_tokens: int) -> dict[str, Any]:
        listed = [
            {
                "index": index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": None,
                "finish_reason": choice.finish,
            }
            for index, choice in enumerate(choices)
        ]
        used = usage(prompt_tokens, sum(c.num_tokens for c in choices))
        return self._document("chat.completion", listed, used)

    def opening(self, choice: int) -> dict[str, Any] | None:
        return self._delta(choice, {"role": "assistant", "content": ""}, None)

    def chunk(self, choice: int, text: str, finish: FinishReason | None) -> dict[str, Any]:
        return self._delta(choice, {"content": text} if text else {}, finish)

    def closing(self, prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
        return self._document("chat.completion.chunk", [], usage(prompt_tokens, completion_tokens))

    def _delta(self, choice: int, delta: dict[str, str], finish: FinishReason | None) -> dict[str, Any]:
        entry = {"index": choice, "delta": delta, "logprobs": None, "finish_reason": finish}
        return self._document("chat.completion.chunk", [entry])

    def _document(self, kind: str, choices: list[dict[str, Any]], used: dict[str, int] | None = None) -> dict[str, Any]:
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return {**head, "choices": choices, **({} if used is None else {"usage": used})}


Answer = CompletionAnswer | ChatAnswer
