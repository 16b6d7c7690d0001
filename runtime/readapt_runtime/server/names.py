"""What models and revisions may be called on the command line: as in resources, because headers carry these names."""

from __future__ import annotations

from pydantic import TypeAdapter, ValidationError

from readapt_api.contract import ServedName
from readapt_api.errors import Terminal

_NAME = TypeAdapter[str](ServedName)


class BadName(Terminal):
    """A name that could not be a resource's."""


def require_name(option: str, name: str) -> str:
    """``name`` itself; raises BadName that names the ``option`` it was given by."""
    try:
        return _NAME.validate_python(name)
    except ValidationError:
        allowed = "1 to 63 of A-Z, a-z, 0-9, '.', '_' and '-', the first and the last one a letter or a digit"
        raise BadName(f"{option}: {name!r} is no name; allowed are {allowed}") from None
