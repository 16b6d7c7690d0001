"""From kopf's events to a worker that wakes up: all of it in one event loop."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import kopf
import pytest

from readapt_operator.handlers import register
from readapt_operator.queue import Key
from readapt_testing.fake_world import World

KEY = Key("default", "base")


def test_handlers_of_events_are_coroutines(monkeypatch: pytest.MonkeyPatch) -> None:
    """kopf runs plain functions in a pool of threads; the queue and asyncio.Event are not safe for them."""
    registered: dict[str, Any] = {}

    def event(*_: Any, id: str, **__: Any) -> Callable[[Any], Any]:
        return lambda handler: registered.setdefault(id, handler)

    monkeypatch.setattr(kopf.on, "event", event)
    added: list[Key] = []
    register(lambda key, delay_s: added.append(key))
    assert registered.keys() == {"basemodels", "loraadapters", "jobs", "deployments", "endpointslices"}
    assert all(inspect.iscoroutinefunction(handler) for handler in registered.values())
    body = {"kind": "BaseModel", "metadata": {"namespace": "default", "name": "base"}}
    asyncio.run(registered["basemodels"](body=body))
    assert added == [KEY]


def test_what_is_added_while_a_worker_goes_to_rest_wakes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with World() as world:
        loop = world.loop

        def next_due_s() -> None:
            loop.add(KEY, 0.0)  # in the middle of going to rest, after the queue was looked at

        monkeypatch.setattr(type(loop.queue), "next_due_s", lambda queue: next_due_s())

        async def rest() -> None:
            async with asyncio.timeout(1.0):  # less than the heartbeat
                await loop._rest()

        asyncio.run(rest())
        assert loop.queue.take() == KEY
