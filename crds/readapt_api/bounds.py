"""Bounds of what users may set, the same for the resources' schemas, the Jobs' requests and the command line.

A ``Range`` says where a number may lie; the type below each is what models use. As metadata of a ``Decimal`` a range
is checked by pydantic and, as a CEL rule, by the API server.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from readapt_api.contract import Decimal


def cel(*rules: tuple[str, str]) -> dict[str, Any]:
    """``json_schema_extra`` for CEL rules, each (expression, message)."""
    return {"x-kubernetes-validations": [{"rule": rule, "message": message} for rule, message in rules]}


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from ``least`` to ``most``."""

    name: str
    """As resources call it."""
    least: float
    most: float
    above: bool = False
    """``least`` itself is out of bounds."""
    below: bool = False
    """``most`` itself is."""
    hint: str = ""

    def __contains__(self, number: float) -> bool:
        over = number > self.least if self.above else number >= self.least
        return over and (number < self.most if self.below else number <= self.most)

    def __str__(self) -> str:
        low, high = "above" if self.above else "at least", "below" if self.below else "at most"
        return f"{low} {self.least:g} and {high} {self.most:g}{self.hint}"

    def check(self, decimal: str) -> str:
        """``decimal`` itself; raises ValueError when it is out of bounds."""
        if float(decimal) not in self:
            raise ValueError(f"{self.name} must be {self}")
        return decimal

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        low, high = ">" if self.above else ">=", "<" if self.below else "<="
        rule = f"double(self) {low} {float(self.least)} && double(self) {high} {float(self.most)}"
        return {**handler(core), **cel((rule, f"{self.name} must be {self}"))}


RANK = Range("rank", 1, 512)
LoraRank = Annotated[int, Field(ge=RANK.least, le=RANK.most)]

ALPHA = Range("alpha", 1, 1024)
LoraAlpha = Annotated[int, Field(ge=ALPHA.least, le=ALPHA.most)]

PRIORITY = Range("priority", -100, 100)
Priority = Annotated[int, Field(ge=PRIORITY.least, le=PRIORITY.most)]

TENSOR_PARALLEL = Range("tensorParallel", 1, 8)
TensorParallel = Annotated[int, Field(ge=TENSOR_PARALLEL.least, le=TENSOR_PARALLEL.most)]

ENERGY = Range("energy", 0, 1, above=True)
Energy = Annotated[Decimal, ENERGY]

RELATIVE_ERROR = Range("relativeError", 0, 1, above=True, below=True)
RelativeError = Annotated[Decimal, RELATIVE_ERROR]

BUDGET = Range("budget", 1, 1 << 40)
"""Numbers in the factors of all modules together."""
Budget = Annotated[int, Field(ge=BUDGET.least, le=BUDGET.most)]

MIN_RETENTION = Range("minRetention", 0, 1)
MinRetention = Annotated[Decimal, MIN_RETENTION]

TRIALS = Range("trials", 4, 64)
"""The search begins with four fixed points."""
Trials = Annotated[int, Field(ge=TRIALS.least, le=TRIALS.most)]

MAX_STEPS = Range("maxSteps", 1, 100_000)
MaxSteps = Annotated[int, Field(ge=MAX_STEPS.least, le=MAX_STEPS.most)]

LEARNING_RATE = Range("learningRate", 0, 1, above=True)
LearningRate = Annotated[Decimal, LEARNING_RATE]

BATCH_SIZE = Range("batchSize", 1, 1024)
BatchSize = Annotated[int, Field(ge=BATCH_SIZE.least, le=BATCH_SIZE.most)]

MAX_REGRESSION = Range("maxRegression", 0, 1, above=True, below=True, hint=" (a share: 0.03 are 3 points)")
"""At 0 a variant that answers exactly as the reference could never pass."""
MaxRegression = Annotated[Decimal, MAX_REGRESSION]

CONFIDENCE = Range("confidence", 0.5, 0.9999, above=True)
"""Closer to 1 the gate's first looks have no critical value in double precision."""
Confidence = Annotated[Decimal, CONFIDENCE]

MAX_SAMPLES = Range("maxSamples", 10, 1_000_000)
MaxSamples = Annotated[int, Field(ge=MAX_SAMPLES.least, le=MAX_SAMPLES.most)]
