"""The two ASGI applications of the process: serving and administration."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from readapt_runtime.engine.thread import EngineThread
from readapt_runtime.server.admin import Admin
from readapt_runtime.server.api_keys import ApiKeys
from readapt_runtime.server.disconnect import ClientGone
from readapt_runtime.server.gatekeeping import RequireKey, StampAnswers
from readapt_runtime.server.openai import OpenAI
from readapt_runtime.server.problems import ApiProblem, internal_error
from readapt_runtime.server.readiness import Readiness


def serving_app(
    openai: OpenAI, engine: EngineThread, readiness: Readiness, revision: str, api_keys: ApiKeys | None
) -> ASGIApp:
    """OpenAI endpoints behind keys when there are any, health and metrics without."""

    async def healthz(request: Request) -> Response:
        if not engine.alive:
            return PlainTextResponse("the engine has stopped", 500)
        if engine.step_s > openai.limits.step_s:
            return PlainTextResponse("the engine hangs", 500)
        return PlainTextResponse("ok")

    async def readyz(request: Request) -> Response:
        return PlainTextResponse(readiness.explain(), 200 if readiness.ready else 503)

    health = [Route("/healthz", healthz), Route("/readyz", readyz)]
    metrics = Route("/metrics", openai.desk.metrics.endpoint)
    app: ASGIApp = _application([*openai.routes(), *health, metrics])
    if api_keys is not None:
        app = RequireKey(app, api_keys)
    return StampAnswers(app, revision, readiness)


def admin_app(admin: Admin) -> ASGIApp:
    return _application(admin.routes())


def _application(routes: list[Route]) -> Starlette:
    return Starlette(
        routes=routes,
        exception_handlers={
            ApiProblem: _problem,
            HTTPException: _http_problem,
            ClientGone: _gone,
            Exception: _unexpected,
        },
    )


async def _gone(request: Request, error: Exception) -> Response:
    """Nobody reads it; the status is nginx's."""
    return Response(status_code=499)


async def _problem(request: Request, error: Exception) -> Response:
    if not isinstance(error, ApiProblem):
        raise error
    return error.response()


async def _unexpected(request: Request, error: Exception) -> Response:
    """Starlette raises the error again after this answer, and uvicorn logs it."""
    return internal_error().response()


async def _http_problem(request: Request, error: Exception) -> Response:
    """Unknown paths and methods, in the shape of the other errors."""
    if not isinstance(error, HTTPException):
        raise error
    problem = ApiProblem(error.detail, headers=dict(error.headers or {}))
    problem.status, problem.kind = error.status_code, "invalid_request_error"
    return problem.response()
