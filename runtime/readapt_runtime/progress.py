"""What long work says while it runs.

Jobs write JSON lines to standard error (the operator may read the tail of a pod's log), the command line a progress
bar. Neither is read by a program for results.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

_EVERY_S = 5.0


class Log(Protocol):
    """Where long work reports."""

    def info(self, event: str, **fields: object) -> None:
        """Something that happened, with its facts."""

    def warning(self, event: str, **fields: object) -> None:
        """Something a person should know about although the work goes on."""

    def progress(self, done: float, doing: str) -> None:
        """``done`` of the whole, within [0, 1], and what is being worked on."""


class JsonLog:
    """One JSON object per line: ``time``, ``level``, ``event`` and the facts; progress every few seconds."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.time) -> None:
        self._stream = stream
        self._clock = clock
        self._last = clock()

    def info(self, event: str, **fields: object) -> None:
        self._write("info", event, fields)

    def warning(self, event: str, **fields: object) -> None:
        self._write("warning", event, fields)

    def error(self, event: str, **fields: object) -> None:
        """Why the work ends here."""
        self._write("error", event, fields)

    def progress(self, done: float, doing: str) -> None:
        now = self._clock()
        if now - self._last >= _EVERY_S or done >= 1.0:
            self._last = now
            self._write("info", "progress", {"percent": round(100 * done), "doing": doing})

    def _write(self, level: str, event: str, fields: dict[str, object]) -> None:
        line = {"time": round(self._clock(), 3), "level": level, "event": event, **fields}
        self._stream.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
        self._stream.flush()


class ConsoleLog:
    """A progress bar and messages for people, on standard error; a context manager."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=Console(stderr=True)
        )
        self._task = self._progress.add_task("", total=1.0)

    def info(self, event: str, **fields: object) -> None:
        self._progress.console.print(_sentence(event, fields), markup=False, highlight=False)

    def warning(self, event: str, **fields: object) -> None:
        self._progress.console.print(f"warning: {_sentence(event, fields)}", style="yellow", markup=False)

    def progress(self, done: float, doing: str) -> None:
        self._progress.update(self._task, completed=done, description=doing)

    def __enter__(self) -> ConsoleLog:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def _sentence(event: str, fields: dict[str, object]) -> str:
    facts = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in fields.items())
    return f"{event}: {facts}" if facts else event
