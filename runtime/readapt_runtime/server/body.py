"""Request bodies: read up to a cap that counts received bytes, whatever Content-Length says, and parsed strictly."""

from __future__ import annotations

import re
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from readapt_runtime.server.disconnect import ClientGone
from readapt_runtime.server.problems import BadRequest, BodyTooLarge

_Model = TypeVar("_Model", bound=BaseModel)
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')
_MAX_CONTAINERS = 8192
"""Lists and objects of a request: 1024 messages of a few parts. Parsing a body that is full of them, which lets nobody
else run, took minutes."""
_MAX_KEYS = 3 * _MAX_CONTAINERS


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


def require_shape(body: bytes, max_elements: int) -> None:
    """Raises BadRequest, before it is parsed, for what has more lists, objects, keys or elements than a request."""
    if _counted(body, max_elements):
        return
    strings = (body.count(b'"') - body.count(b'\\"')) // 2
    if strings <= max_elements and _counted(_STRING.sub(b"", body), max_elements):
        return
    raise BadRequest(f"the request has more than {max_elements} elements, or {_MAX_CONTAINERS} lists and objects")


def _counted(body: bytes, max_elements: int) -> bool:
    """Of text within strings it counts the signs too."""
    containers = body.count(b"[") + body.count(b"{")
    return containers <= _MAX_CONTAINERS and body.count(b":") <= _MAX_KEYS and body.count(b",") <= max_elements


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
