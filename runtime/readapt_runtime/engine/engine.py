"""The engine: admit -> schedule -> run -> settle, over one pool, with one forward pass per step.

In: requests. Out: events on each request's ``emit``. It knows no threads and no clock of its own: the server drives
``step`` from one thread, tests call it directly.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor
from itertools import chain
from typing import Protocol

import torch

from readapt_api.errors import ReadaptError
from readapt_runtime.engine.core import (
    Batch,
    DeadlineExceeded,
    DeadlineUnreachable,
    Event,
    Failure,
    FinishReason,
    NonFiniteLogits,
    Request,
    Row,
    Scores,
    Sequence,
    Token,
    TokenScores,
    Variant,
)
from readapt_runtime.engine.lateness import find_late
from readapt_runtime.engine.limits import EngineLimits
from readapt_runtime.engine.memory import Memory
from readapt_runtime.engine.pace import Pace
from readapt_runtime.engine.pool import BLOCK_TOKENS, PagePool
from readapt_runtime.engine.sampler import UNSOUND, score_tokens
from readapt_runtime.engine.scheduler import Scheduler

log = logging.getLogger(__name__)


class Model(Protocol):
    """What the engine runs."""

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits ``[sampled rows, vocab]``, valid until the next; writes all rows' keys and values to the pool."""
        ...

    def pick(self, batch: Batch, logits: torch.Tensor) -> torch.Tensor:
        """The next token of each sampled row, or UNSOUND: int64 ``[sampled rows]``, after ``forward`` of the batch."""
        ...


class Engine:
    """See the module; not thread-safe."""

    def __init__(
        self,
        model: Model,
        pool: PagePool,
        limits: EngineLimits,
        clock: Callable[[], float] = time.monotonic,
        executor: Executor | None = None,
    ) -> None:
        """``executor`` loads adapters beside the steps; without one they are loaded within them."""
        self._model = model
        self._clock = clock
        self._pace = Pace()
        self.pool = pool
        self.memory = Memory(pool, limits.costs, clock, executor, lambda: self.wake())
        self.scheduler = Scheduler(self.memory, limits, clock)
        self.forward_passes = 0
        self.wake: Callable[[], None] = lambda: None
        """Called on another thread when a load has ended; set by who waits for that."""

    def step(self) -> bool:
        """Moves every running sequence on by one token, or by a stretch of its prompt; False when none could move."""
        self._admit()
        rows = self.scheduler.schedule()
        if not rows:
            return False
        batch = Batch.of(rows)
        self._settle(batch, *self._run(batch))
        return True

    def _admit(self) -> None:
        self._refuse_late()
        for variant, error in self.memory.settle_loads(self._wanted):
            log.error("adapter not loaded", extra={"adapter": variant.name, "detail": str(error)})
            self.scheduler.fail_load(variant)
            for seq in [seq for seq in self.scheduler.waiting if seq.request.variant is variant]:
                self._fail(seq, error)
        self.scheduler.admit_waiting()
        self.scheduler.load_preloaded()

    def _refuse_late(self) -> None:
        now = self._clock()
        for seq in [s for s in self._sequences() if s.request.deadline <= now]:
            self._fail(seq, DeadlineExceeded("the request was not finished by its deadline"))
        for seq in find_late(self.scheduler, self.memory, self._pace, now):
            self._fail(seq, DeadlineUnreachable("the first token can no longer come in time"))

    def _wanted(self) -> set[Variant]:
        return {seq.request.variant for seq in self.scheduler.waiting if seq.request.variant is not None}

    def _run(self, batch: Batch) -> tuple[torch.Tensor, list[int]]:
        """Logits and tokens of the sampled rows; reading the tokens is all that waits for the device."""
        self.forward_passes += 1
        start = self._clock()
        logits = self._model.forward(batch)
        tokens = self._model.pick(batch, logits).tolist() if len(batch.sampled) else []
        self._pace.note(sum(row.count for row in batch.rows if row.count > 1), self._clock() - start)
        self.memory.costs.note_kv(self._pace.seconds(BLOCK_TOKENS))
        return logits, tokens

    def _settle(self, batch: Batch, logits: torch.Tensor, tokens: list[int]) -> None:
        for row in batch.rows:
            self.scheduler.settle(row)
        rows = batch.sampling_rows
        scores = score_tokens(logits, tokens, [row.seq for row in rows])
        for index, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            if token == UNSOUND:
                self._fail(row.seq, NonFiniteLogits("the model answered with NaN or infinity"))
            elif row.seq.request.score_ids:
                self._score(row, logits[index])
            else:
                self._append(row.seq, token, scores.get(index))

    def _append(self, seq: Sequence, token: int, scores: TokenScores | None) -> None:
        seq.tokens.append(token)
        self.scheduler.waiting.charge_answer(seq)
        sampling = seq.request.sampling
        finish = None
        if token in sampling.stop_ids:
            finish = FinishReason.STOP
        elif len(seq.tokens) - len(seq.request.prompt) >= sampling.max_tokens:
            finish = FinishReason.LENGTH
        if finish is None:
            seq.request.emit(Token(token, None, scores))
        else:
            self._finish(seq, Token(token, finish, scores))

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
        """See ``Memory.forget``."""
        self.scheduler.forget(variant)

    def preload(self, variant: Variant, on: bool = True) -> None:
        """See ``Scheduler.preload``."""
        self.scheduler.preload(variant, on)

    def abort(self, error: ReadaptError) -> None:
        """Answers everything that is here with ``error``."""
        for seq in list(self._sequences()):
            self._fail(seq, error)

    @property
    def has_work(self) -> bool:
        return bool(self.scheduler.waiting or self.scheduler.running)

    def _sequences(self) -> chain[Sequence]:
        return chain(self.scheduler.waiting, self.scheduler.running)
