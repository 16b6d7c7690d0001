"""The OpenAI-compatible endpoints: ``/v1/models``, ``/v1/completions``, ``/v1/chat/completions``."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from readapt_api.serving import AdapterState
from readapt_runtime.server.adapters import AdapterTable
from readapt_runtime.server.answering import Desk, Plan, Ticket
from readapt_runtime.server.body import parse_body, read_body, require_shape
from readapt_runtime.server.disconnect import ClientGone, EventStream, unless_disconnected
from readapt_runtime.server.encoding import Encoder
from readapt_runtime.server.limits import Limits
from readapt_runtime.server.metrics import Outcome
from readapt_runtime.server.openai_answers import Answer, ChatAnswer, Collected, CompletionAnswer
from readapt_runtime.server.openai_schema import AnswerRequest, ChatRequest, CompletionRequest
from readapt_runtime.server.pieces import Piece
from readapt_runtime.server.problems import ApiProblem, BadRequest, UnknownModel, internal_error
from readapt_runtime.server.tokens import Tokens

_Endpoint = Callable[[Request], Awaitable[Response]]
_Encode = Callable[[], Awaitable[list[tuple[int, ...]]]]
_Pieces = AsyncGenerator[tuple[int, Piece], None]
_SERVED = {AdapterState.REGISTERED, AdapterState.VERIFIED}


@dataclass(frozen=True, slots=True)
class OpenAI:
    """One instance per process."""

    base: str
    tokens: Tokens
    encoder: Encoder
    desk: Desk
    adapters: AdapterTable
    limits: Limits
    tenant_header: str = ""
    """Names the tenant of a request, where a gateway that is trusted sets it."""
    started: int = field(default_factory=lambda: int(time.time()))

    def routes(self) -> list[Route]:
        return [
            Route("/v1/models", self.models),
            Route("/v1/models/{model}", self.model),
            Route("/v1/completions", self._counted(self.completions), methods=["POST"]),
            Route("/v1/chat/completions", self._counted(self.chat), methods=["POST"]),
        ]

    def _counted(self, endpoint: _Endpoint) -> _Endpoint:
        """Counts the outcome, but of a stream that has begun: it is counted at its end."""

        async def counted(request: Request) -> Response:
            outcome: Outcome | None = Outcome.GONE
            try:
                response = await endpoint(request)
                outcome = None if isinstance(response, EventStream) else Outcome.ANSWERED
                return response
            except ApiProblem as problem:
                outcome = Outcome.REFUSED if problem.status < 500 else Outcome.FAILED
                raise
            except ClientGone:
                raise
            except Exception:
                outcome = Outcome.FAILED
                raise
            finally:
                if outcome is not None:
                    self.desk.metrics.count(outcome)

        return counted

    async def models(self, request: Request) -> Response:
        """The base, then every registered adapter."""
        return JSONResponse({"object": "list", "data": [self._describe(name) for name in self._names()]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["model"]
        if name not in self._names():
            raise UnknownModel(f"the model {name!r} does not exist", "model")
        return JSONResponse(self._describe(name))

    def _names(self) -> list[str]:
        return [self.base, *(g.name for g in self.adapters.generations if g.state in _SERVED)]

    def _describe(self, name: str) -> dict[str, Any]:
        parent = None if name == self.base else self.base
        return {"id": name, "object": "model", "created": self.started, "owned_by": "readapt", "parent": parent}

    async def completions(self, request: Request) -> Response:
        params = parse_body(CompletionRequest, await self._body(request))
        self.desk.require(params, len(params.prompts))
        answer = CompletionAnswer(params.model, self.tokens.names)
        return await self._answer(request, params, lambda: self.encoder.prompts(params.prompts), answer)

    async def chat(self, request: Request) -> Response:
        params = parse_body(ChatRequest, await self._body(request))
        self.desk.require(params, 1)

        async def encode() -> list[tuple[int, ...]]:
            return [await self.encoder.chat([message.flat() for message in params.messages])]

        return await self._answer(request, params, encode, ChatAnswer(params.model, self.tokens.names))

    async def _body(self, request: Request) -> bytes:
        body = await read_body(request, self.limits.max_body_bytes)
        require_shape(body, self.limits.max_elements)
        return body

    def _tenant(self, request: Request) -> str:
        tenant = request.headers.get(self.tenant_header, "") if self.tenant_header else ""
        if len(tenant) > self.limits.max_tenant_chars:
            raise BadRequest(f"{self.tenant_header} may have {self.limits.max_tenant_chars} characters")
        return tenant

    async def _admit(self, params: AnswerRequest, encode: _Encode, tenant: str) -> tuple[Plan, Ticket]:
        plan = self.desk.plan(params, await encode())
        return plan, await self.desk.admit(params.model, plan, tenant)

    async def _answer(self, request: Request, params: AnswerRequest, encode: _Encode, answer: Answer) -> Response:
        tenant = self._tenant(request)
        plan, ticket = await unless_disconnected(request, self._admit(params, encode, tenant))
        try:
            if params.stream:
                return await self._stream(request, params, plan, answer, ticket)
            document = await unless_disconnected(request, self._whole(plan, answer, ticket))
        except ApiProblem as problem:
            problem.headers.update(ticket.headers)
            ticket.close()
            raise
        except BaseException:
            ticket.close()
            raise
        ticket.close()
        return JSONResponse(document, headers=ticket.headers)

    async def _whole(self, plan: Plan, answer: Answer, ticket: Ticket) -> dict[str, Any]:
        choices = [Collected() for _ in plan.jobs]
        async for index, piece in self.desk.answer(plan, ticket):
            choices[index].add(piece)
        return answer.whole(choices, plan.prompt_tokens)

    async def _stream(
        self, request: Request, params: AnswerRequest, plan: Plan, answer: Answer, ticket: Ticket
    ) -> Response:
        """The status is decided by the first piece; a later problem is an event, and no ``[DONE]`` follows it."""
        pieces: _Pieces = self.desk.answer(plan, ticket)
        try:
            first = await unless_disconnected(request, anext(pieces))
        except BaseException:
            await pieces.aclose()
            raise
        events = _events(first, pieces, plan, answer, ticket, params.include_usage)

        async def close() -> None:
            await events.aclose()
            await pieces.aclose()
            self.desk.metrics.count(ticket.outcome)
            ticket.close()

        return EventStream(events, ticket.headers, close)


async def _events(
    first: tuple[int, Piece], pieces: _Pieces, plan: Plan, answer: Answer, ticket: Ticket, include_usage: bool
) -> AsyncGenerator[str, None]:
    for choice in range(len(plan.jobs)):
        if (opening := answer.opening(choice)) is not None:
            yield _event(opening)
    produced = first[1].num_tokens
    try:
        yield _event(answer.chunk(*first))
        async for index, piece in pieces:
            produced += piece.num_tokens
            if piece.text or piece.finish or piece.scored:
                yield _event(answer.chunk(index, piece))
    except ApiProblem as problem:
        ticket.outcome = Outcome.FAILED
        yield _event(problem.body())
        return
    except Exception:
        ticket.outcome = Outcome.FAILED
        yield _event(internal_error().body())
        raise
    if include_usage:
        yield _event(answer.closing(plan.prompt_tokens, produced))
    yield "data: [DONE]\n\n"
    ticket.outcome = Outcome.ANSWERED


def _event(document: dict[str, Any]) -> str:
    return f"data: {json.dumps(document, ensure_ascii=False, separators=(',', ':'))}\n\n"
