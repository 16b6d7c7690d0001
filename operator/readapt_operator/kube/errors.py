"""What can go wrong at the API server.

Transient
├── Unavailable      no answer, time-out, 401 (token files rotate), 408, 410, 429, 5xx
├── Conflict         409 of an update: the object has changed or is another one
├── AlreadyExists    409 of a create
├── NotFound         404 of a write
└── NotLeader        the lease is not ours (any more): nothing was sent
Terminal
└── Refused          400, 403, 405, 413, 415, 422: the same request is refused again
"""

from __future__ import annotations

import json

from readapt_api.errors import ReadaptError, Terminal, Transient

_SHOWN = 300


class Unavailable(Transient):
    """The API server did not answer, or says that it cannot now."""


class Conflict(Transient):
    """The object is not what it was when it was read."""


class AlreadyExists(Transient):
    """There is an object of that name."""


class NotFound(Transient):
    """The object to be written is gone."""


class NotLeader(Transient):
    """Another operator holds the lease, or ours is about to end."""


class Refused(Terminal):
    """The API server refuses the request as it is."""


def error_for(status: int, body: bytes, what: str) -> ReadaptError:
    """The error of an answer that is not 2xx; ``what`` names the request."""
    reason, message, fields = _explain(body)
    text = f"{what}: {status} {reason} {message}".strip()
    if status == 404:
        return NotFound(text)
    if status == 409:
        return AlreadyExists(text) if reason == "AlreadyExists" else Conflict(text)
    if status == 422 and "metadata.uid" in fields:
        return Conflict(text)  # an object of the same name, made anew since it was read
    # 401: token files rotate. 410: the continue token of a long list has expired.
    if status in (401, 408, 410, 429) or status >= 500:
        return Unavailable(text)
    return Refused(text)


def _explain(body: bytes) -> tuple[str, str, set[str]]:
    """Reason, message and faulty fields of a ``kind: Status``.

    Anything else is not shown: it may hold other people's data.
    """
    try:
        document = json.loads(body)
    except ValueError:
        return "", "", set()
    if not isinstance(document, dict) or document.get("kind") != "Status":
        return "", "", set()
    causes = (document.get("details") or {}).get("causes") or ()
    fields = {str(cause.get("field")) for cause in causes}
    return str(document.get("reason") or ""), str(document.get("message") or "")[:_SHOWN], fields
