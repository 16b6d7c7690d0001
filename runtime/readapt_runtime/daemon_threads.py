"""Threads that nobody waits for at the end of the process.

A read from a volume that is dead may never return. ``ThreadPoolExecutor`` (asyncio's ``to_thread`` too) joins its
threads before the interpreter ends, so that one such read would keep a terminated server there for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, Future
from threading import Thread
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


class DaemonThreads(Executor):
    """One per call: whoever calls bounds how many there are at once."""

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        future: Future[_T] = Future()
        Thread(target=_run, args=(future, lambda: fn(*args, **kwargs)), daemon=True).start()
        return future


async def to_daemon_thread(work: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """``asyncio.to_thread`` on such a thread."""
    return await asyncio.wrap_future(DaemonThreads().submit(work, *args, **kwargs))


def _run(future: Future[_T], work: Callable[[], _T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = work()
    except BaseException as error:  # noqa: BLE001 - whoever waits for the future is told
        future.set_exception(error)
    else:
        future.set_result(result)
