"""The engine: admit -> schedule -> run -> settle, over one pool, with one forward pass per step.

In: requests. Out: events on each request's ``emit``. It knows no threads and no clock of its own: the server drives
``step`` from one thread, tests call it directly.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import torch

from readapt_api.errors import ReadaptError
from readapt_runtime.engine.core import (
    Batch,
    DeadlineExceeded,
    Event,
    Failure,
    FinishReason,
    NonFiniteLogits,
    Request,
    Row,
    Scores,
    Sequence,
    Token,
    Variant,
)
from readapt_runtime.engine.pool import PagePool
from readapt_runtime.engine.residency import Residency
from readapt_runtime.engine.sampler import sample
from readapt_runtime.engine.scheduler import Scheduler


class Model(Protocol):
    """What the engine runs."""

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits ``[sampled rows, vocab]``; writes the keys and values of all rows into the pool."""
        ...

    def greedy(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The first largest of each row (int64), and whether the row is finite (bool)."""
        ...


@dataclass(frozen=True, slots=True)
class EngineLimits:
    max_batch_tokens: int = 2048
    """Tokens of one step."""
    max_running: int = 256
    """Sequences that run at once."""


class Engine:
    """See the module; not thread-safe."""

    def __init__(
        self, model: Model, pool: PagePool, limits: EngineLimits, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._model = model
        self._clock = clock
        self.pool = pool
        self.residency = Residency(pool)
        self.scheduler = Scheduler(pool, self.residency, limits.max_batch_tokens, limits.max_running)
        self.forward_passes = 0

    def step(self) -> None:
        """Moves every running sequence on by one token, or by a stretch of its prompt."""
        self._admit()
        rows = self.scheduler.schedule()
        if rows:
            batch = Batch.of(rows, self.pool.device)
            logits = self._run(batch)
            self._settle(batch, logits)

    def _admit(self) -> None:
        now = self._clock()
        for seq in [s for s in self._sequences() if s.request.deadline <= now]:
            self._fail(seq, DeadlineExceeded("the request was not finished by its deadline"))
        self.scheduler.admit_waiting()

    def _run(self, batch: Batch) -> torch.Tensor:
        self.forward_passes += 1
        return self._model.forward(batch)

    def _settle(self, batch: Batch, logits: torch.Tensor) -> None:
        for row in batch.rows:
            row.seq.computed += row.count
        rows, logits, best = self._sound(batch.sampling_rows, logits)
        if not rows:
            return
        tokens = sample(logits, best, [row.seq for row in rows])
        for index, row in enumerate(rows):
            if row.seq.request.score_ids:
                self._score(row, logits[index])
            else:
                self._append(row.seq, tokens[index])

    def _sound(self, rows: list[Row], logits: torch.Tensor) -> tuple[list[Row], torch.Tensor, torch.Tensor]:
        """Rows, logits and their largest; rows with a NaN or an infinity fail, for nothing can be drawn from them."""
        if not rows:
            return rows, logits, torch.empty(0, dtype=torch.int64)
        best, are_finite = self._model.greedy(logits)
        finite = are_finite.tolist()
        if all(finite):
            return rows, logits, best
        for row, fine in zip(rows, finite, strict=True):
            if not fine:
                self._fail(row.seq, NonFiniteLogits("the model answered with NaN or infinity"))
        return [row for row, fine in zip(rows, finite, strict=True) if fine], logits[are_finite], best[are_finite]

    def _append(self, seq: Sequence, token: int) -> None:
        seq.tokens.append(token)
        sampling = seq.request.sampling
        finish = None
        if token in sampling.stop_ids:
            finish = FinishReason.STOP
        elif len(seq.tokens) - len(seq.request.prompt) >= sampling.max_tokens:
            finish = FinishReason.LENGTH
        if finish is None:
            seq.request.emit(Token(token, None))
        else:
            self._finish(seq, Token(token, finish))

    def _score(self, row: Row, logits: torch.Tensor) -> None:
        log_probs = logits.float().log_softmax(dim=-1)[list(row.seq.request.score_ids)]
        self._finish(row.seq, Scores(tuple(log_probs.tolist())))

    def _finish(self, seq: Sequence, event: Event) -> None:
        self.scheduler.retire(seq)
        seq.request.emit(event)

    def _fail(self, seq: Sequence, error: ReadaptError) -> None:
        self._finish(seq, Failure(error))

    def add(self, request: Request) -> None:
        """Queues a request; one that can never run is answered with RequestTooLarge at once."""
        try:
            self.scheduler.add(request)
        except ReadaptError as error:
            request.emit(Failure(error))

    def cancel(self, request: Request) -> None:
        """Drops a request without an event; unknown or finished ones are ignored."""
        for seq in [s for s in self._sequences() if s.request is request]:
            self.scheduler.retire(seq)

    def forget(self, variant: Variant) -> None:
        """See ``Residency.forget``."""
        self.residency.forget(variant)

    def abort(self, error: ReadaptError) -> None:
        """Answers everything that is here with ``error``."""
        for seq in list(self._sequences()):
            self._fail(seq, error)

    @property
    def has_work(self) -> bool:
        return bool(self.scheduler.waiting or self.scheduler.running)

    def _sequences(self) -> chain[Sequence]:
        return chain(self.scheduler.waiting, self.scheduler.running)
