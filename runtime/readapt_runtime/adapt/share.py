"""A part of a longer work reports its own progress from 0 to 1."""

from __future__ import annotations

from dataclasses import dataclass

from readapt_runtime.progress import Log


@dataclass(frozen=True, slots=True)
class Share:
    """A Log whose progress fills ``width`` of the whole, from ``begin`` on; of several works it says which it is."""

    log: Log
    begin: float
    width: float
    adapter: str = ""
    """Named in every line; empty where there is but one."""

    def info(self, event: str, **fields: object) -> None:
        self.log.info(event, **self._named(fields))

    def warning(self, event: str, **fields: object) -> None:
        self.log.warning(event, **self._named(fields))

    def progress(self, done: float, doing: str) -> None:
        self.log.progress(self.begin + self.width * done, f"{self.adapter}: {doing}" if self.adapter else doing)

    def _named(self, fields: dict[str, object]) -> dict[str, object]:
        return {"adapter": self.adapter, **fields} if self.adapter else fields
