"""What clients are told when something is wrong, in the shape of the OpenAI API.

ApiProblem
├── BadRequest          400  a parameter that is wrong or not implemented
│   └── ContextTooLong  400  prompt and answer do not fit
├── Unauthorized        401
├── UnknownModel        404
├── Conflict            409
├── BodyTooLarge        413
├── HeadersTooLarge     431
├── TooManyRequests     429  Retry-After
└── Unavailable         503  Retry-After: not verified in time, engine stopped, deadline
    └── AdapterFailed   503  the adapter will not be served; says why
"""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse

from readapt_api.errors import ReadaptError

RETRY_AFTER_S = 5


class ApiProblem(Exception):
    """An answer with an error status."""

    status = 500
    kind = "server_error"
    code: str | None = None
    retry_after_s: int | None = None

    def __init__(self, message: str, param: str | None = None, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        headers = dict(self.headers)
        if self.retry_after_s is not None:
            headers["retry-after"] = str(self.retry_after_s)
        return JSONResponse(self.body(), self.status, headers)


class BadRequest(ApiProblem):
    status = 400
    kind = "invalid_request_error"


class ContextTooLong(BadRequest):
    code = "context_length_exceeded"

    @classmethod
    def of(cls, wanted: str, context: int, param: str) -> ContextTooLong:
        return cls(f"{wanted} exceed the context of {context} tokens", param)


class Unauthorized(ApiProblem):
    status = 401
    kind = "invalid_request_error"
    code = "invalid_api_key"


class UnknownModel(ApiProblem):
    status = 404
    kind = "invalid_request_error"
    code = "model_not_found"


class Conflict(ApiProblem):
    status = 409
    kind = "conflict"


class BodyTooLarge(ApiProblem):
    status = 413
    kind = "invalid_request_error"


class HeadersTooLarge(ApiProblem):
    status = 431
    kind = "invalid_request_error"


class TooManyRequests(ApiProblem):
    status = 429
    kind = "rate_limit_error"
    retry_after_s = 1


class Unavailable(ApiProblem):
    status = 503
    retry_after_s = RETRY_AFTER_S


class AdapterFailed(Unavailable):
    code = "adapter_failed"


def internal_error() -> ApiProblem:
    """What is told of an error that nobody foresaw; the log has the rest."""
    return ApiProblem("an internal error occurred")


def from_engine(error: ReadaptError) -> ApiProblem:
    """The answer to a request that the engine could not finish."""
    from readapt_runtime.engine.core import NonFiniteLogits, RequestTooLarge

    if isinstance(error, RequestTooLarge):
        return ContextTooLong(str(error))
    if isinstance(error, NonFiniteLogits):
        return ApiProblem(str(error))
    return Unavailable(str(error))
