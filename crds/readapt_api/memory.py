"""Amounts of memory as Kubernetes users write them: what a resource may say is what a process understands."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints

from readapt_api.bounds import cel

_UNITS = {
    "": 1,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "Ki": 1 << 10,
    "Mi": 1 << 20,
    "Gi": 1 << 30,
    "Ti": 1 << 40,
}
MEMORY_PATTERN = rf"^[0-9]+(\.[0-9]+)?({'|'.join(filter(None, _UNITS))})?$"


def memory_bytes(text: str) -> int:
    """Bytes of ``4Gi``, ``1.5Gi``, ``4000M``; parts of a byte are rounded up, as Kubernetes does. Raises ValueError."""
    number = text.rstrip("".join(_UNITS))
    if not re.fullmatch(MEMORY_PATTERN, text) or not (size := Fraction(number) * _UNITS[text.removeprefix(number)]):
        raise ValueError(f"{text!r} is not an amount of memory above 0, such as 4Gi, 1.5Gi or 4000M")
    return math.ceil(size)


def _above_zero(text: str) -> str:
    memory_bytes(text)
    return text


Memory = Annotated[
    str,
    StringConstraints(pattern=MEMORY_PATTERN, max_length=24),
    AfterValidator(_above_zero),
    Field(json_schema_extra=cel(("self.matches('[1-9]')", "must be an amount of memory above 0"))),
]
