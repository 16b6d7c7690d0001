"""The base of every document that crosses a process boundary."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints
from pydantic.alias_generators import to_camel


class Contract(BaseModel):
    """camelCase on the wire, snake_case in Python; unknown fields are an error, values are immutable."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True, allow_inf_nan=False
    )

    def to_wire(self) -> dict[str, object]:
        """The JSON document: camelCase keys, fields that are None left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


DIGEST_PATTERN = r"^sha256:[0-9a-f]{64}$"
Digest = Annotated[str, StringConstraints(pattern=DIGEST_PATTERN, max_length=71)]
"""``sha256:`` and 64 hexadecimal digits."""

NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN, max_length=40)]
"""A DNS-1035 label of at most 40 characters, so that every child name fits into 63."""

SERVED_NAME_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$"
ServedName = Annotated[str, StringConstraints(pattern=SERVED_NAME_PATTERN, max_length=63)]
"""What clients send as ``model``: it also stands in headers and labels."""

DECIMAL_PATTERN = r"^[0-9]+(\.[0-9]+)?([eE]-?[0-9]{1,2})?$"
Decimal = Annotated[str, StringConstraints(pattern=DECIMAL_PATTERN, max_length=16)]
"""A non-negative number written as a string: API conventions forbid floats in resources."""
