"""Request bodies: read up to a cap that counts received bytes, whatever Content-Length says, and parsed strictly."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from readapt_runtime.server.disconnect import ClientGone
from readapt_runtime.server.problems import BadRequest, BodyTooLarge

_Model = TypeVar("_Model", bound=BaseModel)


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Raises BodyTooLarge as soon as the cap is passed (the rest is not read), ClientGone when it does not arrive."""
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > max_bytes:
                raise BodyTooLarge(f"the request is larger than {max_bytes} bytes", headers={"connection": "close"})
    except ClientDisconnect as error:
        raise ClientGone from error
    return bytes(body)


def parse_body(model: type[_Model], body: bytes) -> _Model:
    """Raises BadRequest that names the first parameter that is wrong or not implemented."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        param = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise BadRequest(f"the parameter {param!r} is not implemented", param) from error
        message = str(first["ctx"]["error"]) if first["type"] == "value_error" else first["msg"]
        raise BadRequest(f"{param}: {message}" if param else message, param or None) from error
