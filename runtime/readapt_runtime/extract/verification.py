"""An adapter that was written, against the checkpoints it was made of.

In: the files as they lie in the folder, and both checkpoints once more. Out: per module the error that is measured,
‖ΔW - B A‖ / ‖ΔW‖. Next: the report. A module whose error is not what its singular values promise ends the extraction.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from readapt_api.errors import Terminal
from readapt_runtime.difference import CheckpointPair, frobenius
from readapt_runtime.extract.report import Extracted
from readapt_runtime.lora_format import LoraModule, open_adapter
from readapt_runtime.progress import Log

_ROWS = 256
_TOLERANCE = 2e-3
"""Of the measured relative error against the one that the kept energy promises."""


class ExtractionFailed(Terminal):
    """The factors that were written do not approximate the difference as they should."""


def verify(
    folder: Path, pair: CheckpointPair, extracted: Mapping[str, Extracted], log: Log
) -> Iterator[tuple[str, float]]:
    """(module, its relative error) for the modules that are in the adapter. Raises ExtractionFailed, BadWeights."""
    with open_adapter(folder, pair.shapes) as adapter:
        memory = torch.empty(pair.largest, device=pair.device)
        for done, name in enumerate(adapter.modules, start=1):
            delta = memory[: math.prod(pair.shapes[name])].view(pair.shapes[name])
            pair.subtract_again(name, delta)
            error = _residual(delta, adapter.read(name)) / extracted[name].change.norm
            promised = max(0.0, 1.0 - extracted[name].choice.energy) ** 0.5
            if not abs(error - promised) <= _TOLERANCE:
                raise ExtractionFailed(
                    f"{name}: relative error {error:.4f}, its singular values promise {promised:.4f}"
                )
            log.progress(0.7 + 0.3 * done / len(adapter.modules), f"verifying {name}")
            yield name, error


def _residual(delta: torch.Tensor, module: LoraModule) -> float:
    """‖ΔW - s·B A‖_F, some rows at a time: the product of the factors is never held as a whole. Changes ``delta``."""
    a, b = module.a.to(delta.device), module.b.to(delta.device)
    squares = 0.0
    for rows, left in zip(torch.split(delta, _ROWS), torch.split(b, _ROWS), strict=True):
        squares += frobenius(rows.addmm_(left, a, alpha=-module.scale)) ** 2
    return math.sqrt(squares)
