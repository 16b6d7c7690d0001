"""From a request to pieces of text: admission, the pinned adapter, the engine, pieces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from readapt_api.errors import ReadaptError
from readapt_api.serving import HEADER_ADAPTER, AdapterState
from readapt_runtime.engine.core import SamplingParams
from readapt_runtime.server.adapters import AdapterTable, NoSuchAdapter
from readapt_runtime.server.engine_client import EngineClient, Job, Terms
from readapt_runtime.server.generation import Generation
from readapt_runtime.server.limits import Limits
from readapt_runtime.server.metrics import AnswerClock, Outcome, ServingMetrics
from readapt_runtime.server.openai_schema import AnswerRequest
from readapt_runtime.server.pieces import Choice, Piece
from readapt_runtime.server.problems import (
    AdapterFailed,
    BadRequest,
    ContextTooLong,
    TooManyRequests,
    Unavailable,
    UnknownModel,
    from_engine,
)
from readapt_runtime.server.tokens import Tokens


@dataclass(frozen=True, slots=True)
class Plan:
    """A judged request: what to compute, ``prompts`` times ``n`` jobs in the order of their choices."""

    jobs: tuple[Job, ...]
    stops: tuple[str, ...]
    prompt_tokens: int


class Ticket:
    """An admitted request; holds its place and its adapter's generation until it is closed."""

    def __init__(self, desk: Desk, count: int, generation: Generation | None, started: float, tenant: str) -> None:
        self._desk = desk
        self._count = count
        self._open = True
        self.generation = generation
        self.started = started
        self.tenant = tenant
        self.outcome = Outcome.GONE

    @property
    def headers(self) -> dict[str, str]:
        """Which variant computes the answer; nothing for the base."""
        return {} if self.generation is None else {HEADER_ADAPTER: self.generation.label}

    def close(self) -> None:
        """May be called again."""
        if self._open:
            self._open = False
            self._desk.leave(self._count, self.generation)


class Desk:
    """Admits requests and turns them into text."""

    def __init__(
        self,
        base: str,
        tokens: Tokens,
        client: EngineClient,
        adapters: AdapterTable,
        limits: Limits,
        metrics: ServingMetrics,
    ) -> None:
        self._base = base
        self._tokens = tokens
        self._client = client
        self._adapters = adapters
        self._limits = limits
        self.metrics = metrics
        self.in_flight = 0

    def require(self, params: AnswerRequest, num_prompts: int) -> None:
        """Judges what can be judged without the prompts' tokens; raises BadRequest."""
        n = params.n or 1
        if not 1 <= num_prompts * n <= self._limits.max_choices:
            raise BadRequest(f"prompts times n must be 1 to {self._limits.max_choices}", "n")
        stops = params.stop or ()
        if len(stops) > self._limits.max_stops or any(len(s) > self._limits.max_stop_chars for s in stops):
            bound = f"{self._limits.max_stops} stop strings of {self._limits.max_stop_chars} characters"
            raise BadRequest(f"at most {bound}", "stop")

    def plan(self, params: AnswerRequest, prompts: Sequence[tuple[int, ...]]) -> Plan:
        """Of a request that ``require`` let pass; raises BadRequest."""
        n, stops = params.n or 1, tuple(params.stop or ())
        jobs = tuple(Job(prompt, self._sampling(params, prompt, choice)) for prompt in prompts for choice in range(n))
        return Plan(jobs, stops, sum(len(prompt) for prompt in prompts))

    def _sampling(self, params: AnswerRequest, prompt: tuple[int, ...], choice: int) -> SamplingParams:
        max_tokens = params.answer_tokens
        room = self._limits.max_model_len - len(prompt)
        if not prompt:
            raise BadRequest("the prompt has no tokens", params.asks)
        if room < (max_tokens or 1):
            wanted = f"{len(prompt)} prompt tokens and {max_tokens or 1} answer tokens"
            raise ContextTooLong.of(wanted, self._limits.max_model_len, params.asks)
        return SamplingParams(
            max_tokens=max_tokens or room,
            temperature=1.0 if params.temperature is None else params.temperature,
            top_p=1.0 if params.top_p is None else params.top_p,
            seed=None if params.seed is None else (params.seed + choice) % 2**63,
            stop_ids=frozenset() if params.ignore_eos else self._tokens.stop_ids,
            top_log_probs=params.top_log_probs,
        )

    async def admit(self, model: str, plan: Plan, tenant: str) -> Ticket:
        """Pins the generation that answers, and waits until it is verified; raises ApiProblem.

        Cached beginnings of prompts are shared within a ``tenant`` only, and tenants are served evenly; without one
        ("") the models are.
        """
        started = self._client.clock()
        count = len(plan.jobs)
        generation = self._pin(model)
        if self.in_flight + count > self._limits.max_in_flight:
            self._unpin(generation)
            raise TooManyRequests(f"more than {self._limits.max_in_flight} answers are being computed")
        self.in_flight += count
        ticket = Ticket(self, count, generation, started, tenant)
        try:
            if generation is not None:
                await self._verified(generation, started + self._limits.request_s)
        except BaseException:
            ticket.close()
            raise
        return ticket

    def _pin(self, model: str) -> Generation | None:
        if model == self._base:
            return None
        try:
            return self._adapters.pin(model)
        except NoSuchAdapter as error:
            raise UnknownModel(str(error), "model") from error

    def _unpin(self, generation: Generation | None) -> None:
        if generation is not None:
            self._adapters.unpin(generation)

    def leave(self, count: int, generation: Generation | None) -> None:
        self.in_flight -= count
        self._unpin(generation)

    async def _verified(self, generation: Generation, deadline: float) -> None:
        headers = {HEADER_ADAPTER: generation.label}
        try:
            await asyncio.wait_for(generation.settled.wait(), deadline - self._client.clock())
        except TimeoutError as error:
            reason = f": {generation.message}" if generation.message else ""
            raise Unavailable(
                f"{generation.name} was not verified before the deadline{reason}", headers=headers
            ) from error
        if generation.state is AdapterState.FAILED:
            raise AdapterFailed(f"{generation.name}: {generation.reason}: {generation.message}", headers=headers)

    def _terms(self, ticket: Ticket) -> Terms:
        generation = ticket.generation
        return Terms(
            variant=generation.variant if generation else None,
            deadline=ticket.started + self._limits.request_s,
            first_token_by=ticket.started + self._limits.first_token_s,
            tenant=ticket.tenant,
            account=ticket.tenant or (generation.name if generation else self._base),
            priority=generation.priority if generation else 0,
        )

    async def answer(self, plan: Plan, ticket: Ticket) -> AsyncGenerator[tuple[int, Piece], None]:
        """(choice, piece) as they become final; raises ApiProblem. The ticket stays open."""
        choices = [Choice(self._tokens.detokenizer(), plan.stops) for _ in plan.jobs]
        unfinished = len(choices)
        clock = AnswerClock(self.metrics, self._client.clock, ticket.started, plan.prompt_tokens)
        try:
            async with aclosing(self._client.answer(plan.jobs, self._terms(ticket))) as events:
                async for index, token in events:
                    if choices[index].finished:
                        continue  # a stop string ended it before the engine did
                    clock.token(index)
                    piece = choices[index].push(token)
                    yield index, piece
                    unfinished -= piece.finish is not None
                    if unfinished == 0:
                        clock.end()
                        return
        except ReadaptError as error:
            raise from_engine(error) from error
