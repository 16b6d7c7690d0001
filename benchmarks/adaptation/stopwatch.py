"""CPU seconds of a way, and when which checkpoint was seen."""

from __future__ import annotations

import time

from readapt_runtime.progress import Log


class Stopwatch:
    """A log that notes at which CPU second of this process it hears of which checkpoint, and passes everything on."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._begin = time.process_time()
        self.curve: list[tuple[float, float]] = []
        """(CPU seconds since it was made, score on the stopping examples)"""

    def seconds(self) -> float:
        return time.process_time() - self._begin

    def info(self, event: str, **fields: object) -> None:
        if event == "checkpoint":
            self.curve.append((self.seconds(), float(str(fields["score"]))))
        self._log.info(event, **fields)

    def warning(self, event: str, **fields: object) -> None:
        self._log.warning(event, **fields)

    def progress(self, done: float, doing: str) -> None:
        self._log.progress(done, doing)
