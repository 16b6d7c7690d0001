"""Whether an engine is right: what it added to every linear of every layer, against fp64."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from lora_cases import Case
from lora_engines import Engine, run_stack

TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 1e-2}
"""Of the part that LoRA adds, relative in the Frobenius norm."""


def largest_error(engine: Engine, case: Case, run: Callable[[], None] | None = None) -> float:
    """Over all layers and linears; NaN where poison came through, infinite where a base row changed.

    ``run`` replays what was captured; without it the engine launches.
    """
    linears = range(len(case.shapes.linears))
    engine.poison()
    engine.prepare()
    run_stack(engine, linears) if run is None else run()
    errors = [
        added_error(engine.outputs[layer][linear], case, layer, linear)
        for layer, linear in itertools.product(range(case.shapes.num_layers), linears)
    ]
    return max(errors) if all(error == error for error in errors) else float("nan")


def added_error(actual: torch.Tensor, case: Case, layer: int, linear: int) -> float:
    """‖what was added - fp64‖ / ‖fp64‖ over the rows of adapters."""
    before, expected = case.outputs(linear), case.expected(layer, linear)
    live = case.batch.tokens - case.batch.base_rows
    if not torch.equal(actual[live:], before[live:]):
        return float("inf")
    added = (expected - before.double())[:live].norm()
    return float((actual.double() - expected)[:live].norm() / added)
