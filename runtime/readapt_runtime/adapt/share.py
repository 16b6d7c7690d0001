"""A part of a longer work reports its own progress from 0 to 1."""

from __future__ import annotations

from dataclasses import dataclass

from readapt_runtime.progress import Log


@dataclass(frozen=True, slots=True)
class Share:
    """A Log whose progress fills ``width`` of the whole, from ``begin`` on."""

    log: Log
    begin: float
    width: float

    def info(self, event: str, **fields: object) -> None:
        self.log.info(event, **fields)

    def warning(self, event: str, **fields: object) -> None:
        self.log.warning(event, **fields)

    def progress(self, done: float, doing: str) -> None:
        self.log.progress(self.begin + self.width * done, doing)
