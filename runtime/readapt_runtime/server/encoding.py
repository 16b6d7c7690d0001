"""Prompts to token ids beside the event loop.

In: a request's prompts or messages. Out: token ids, in order, for ``answering``. What cannot fit is refused before it
is encoded, what is long is encoded on one of a few threads, and what is short at once: a thread costs as much as 300
bytes. The tokenizer lets the loop run meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from readapt_runtime.server.limits import Limits
from readapt_runtime.server.problems import ContextTooLong, TooManyRequests
from readapt_runtime.server.tokens import Tokens

SHORT_CHARS = 1024
_THREADS = 2
_T = TypeVar("_T")
_Result = TypeVar("_Result")


class Encoder:
    """Used on one event loop; its methods raise BadRequest and TooManyRequests."""

    def __init__(self, tokens: Tokens, limits: Limits) -> None:
        self._tokens = tokens
        self._limits = limits
        self._threads = ThreadPoolExecutor(_THREADS, "encoder")
        self._at_work = 0

    async def prompts(self, prompts: Sequence[str] | Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
        """Texts, or token ids, which are checked."""
        return [await self._text(p) if isinstance(p, str) else self._ids(p) for p in prompts]

    async def chat(self, messages: Sequence[dict[str, str]]) -> tuple[int, ...]:
        """The conversation through the base's chat template, ready for the assistant's answer."""
        chars = sum(len(message["content"]) for message in messages)
        text = await self._run(chars, self._tokens.render_chat, messages)
        self._require_room(text, "messages")  # not earlier: a template may leave out what it was given
        return await self._run(len(text), self._tokens.encode_rendered, text)

    async def _text(self, text: str) -> tuple[int, ...]:
        self._require_room(text, "prompt")
        return await self._run(len(text), self._tokens.encode, text)

    def _ids(self, ids: Sequence[int]) -> tuple[int, ...]:
        if len(ids) >= self._limits.max_model_len:
            raise ContextTooLong.of(f"{len(ids)} prompt tokens", self._limits.max_model_len, "prompt")
        return self._tokens.check(ids)

    def _require_room(self, text: str, param: str) -> None:
        longest, context = self._tokens.bytes_per_token, self._limits.max_model_len
        if longest is not None and (size := len(text.encode())) > context * longest:
            raise ContextTooLong.of(f"a prompt of {size} bytes", context, param)

    async def _run(self, chars: int, work: Callable[[_T], _Result], given: _T) -> _Result:
        if chars <= SHORT_CHARS:
            return work(given)
        if self._at_work >= self._limits.max_in_flight:
            raise TooManyRequests(f"more than {self._limits.max_in_flight} prompts are being encoded")
        self._at_work += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work, given)
        finally:
            self._at_work -= 1
