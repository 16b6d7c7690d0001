"""One request to an OpenAI-compatible server, streamed, with the time of every chunk.

In: an arrival and what to ask. Out: an ``Outcome``; nothing that a server or a connection does raises. Next:
``outcomes``.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from outcomes import Outcome

_DATA, _DONE = b"data:", b"[DONE]"


class StreamError(Exception):
    """What a server did to an answer; the text is the kind that errors are counted by."""


@dataclass(slots=True)
class _Answer:
    """Filled while an answer comes in, so that a broken one keeps what it had."""

    chunks: list[float] = field(default_factory=list)
    tokens: int = 0
    finish: str = ""


async def ask(
    session: aiohttp.ClientSession, url: str, body: Mapping[str, Any], scheduled: float, timeout_s: float
) -> Outcome:
    """POSTs to ``<url>/v1/completions``; ``scheduled`` is on the clock of ``time.monotonic``."""
    answer, error, sent = _Answer(), "", time.monotonic()
    streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
    try:
        async with asyncio.timeout(timeout_s), session.post(f"{url}/v1/completions", json=streamed) as response:
            await _read(response, answer)
    except StreamError as broken:
        error = str(broken)
    except TimeoutError:
        error = f"no answer within {timeout_s:g} s"
    except aiohttp.ClientError as failed:
        error = type(failed).__name__
    ended = time.monotonic()
    return Outcome(scheduled, sent, tuple(answer.chunks), ended, answer.tokens, str(body["model"]), error)


async def _read(response: aiohttp.ClientResponse, answer: _Answer) -> None:
    if response.status != 200:
        await response.read()
        raise StreamError(f"HTTP {response.status}")
    ended = False
    async for data in _events(response.content):
        arrived = time.monotonic()
        if data == _DONE:
            ended = True
            continue
        _take(_parsed(data), arrived, answer)
    if not ended or not answer.finish:
        raise StreamError("answer cut off")


def _take(document: dict[str, Any], arrived: float, answer: _Answer) -> None:
    if "error" in document:
        raise StreamError("error in the stream")
    if document.get("choices"):
        answer.chunks.append(arrived)
        answer.finish = document["choices"][0].get("finish_reason") or answer.finish
    if document.get("usage"):
        answer.tokens = document["usage"]["completion_tokens"]


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(data)
    except ValueError as error:
        raise StreamError("answer cut off") from error
    return document


async def _events(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """The data of each server-sent event; the API sends one line each."""
    async for line in content:
        if line.startswith(_DATA):
            yield line.removeprefix(_DATA).strip()
