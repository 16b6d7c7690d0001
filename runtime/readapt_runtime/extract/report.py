"""report.json of an extraction: what was kept, what was not, and how far the result is from the checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

from readapt_api.contract import Contract

EXTRACT_REPORT = "report.json"


class ModuleReport(Contract):
    """One linear module that became LoRA."""

    shape: tuple[int, int]
    """(out, in)."""
    rank: int
    norm: float
    """‖ΔW‖_F, exact."""
    relative_norm: float
    """‖ΔW‖ / ‖W_base‖."""
    energy: float
    """Share of ‖ΔW‖² in the kept singular values, against the exact norm."""
    spectrum: tuple[float, ...] = ()
    """Share of ‖ΔW‖² in the first singular value, the first two, …: of all that were computed."""
    relative_error: float
    """‖ΔW - B A‖ / ‖ΔW‖, measured on the files that were written."""
    capped: bool
    """The maximum rank kept the module from its energy target."""
    iterations: int
    """Of the randomized SVD; 0 when the full one was taken."""


class SidecarReport(Contract):
    """One changed tensor that is not in the adapter; its new values are in the sidecar."""

    reason: str
    norm: float
    share: float
    """Of ‖ΔW‖² over all tensors."""


class ExtractReport(Contract):
    """report.json."""

    version: int = 1
    rank: int
    norm: float
    """‖ΔW‖_F over all tensors of the checkpoint."""
    energy: float
    """Share of that ‖ΔW‖² which the adapter holds."""
    sidecar_share: float
    """Share of it that no adapter can hold."""
    relative_error: float
    """Over the extracted modules together."""
    modules: dict[str, ModuleReport]
    sidecar: dict[str, SidecarReport]
    unchanged: int
    """Linear modules without any change."""
    warnings: tuple[str, ...]

    def write(self, folder: Path) -> None:
        text = json.dumps(self.to_wire(), indent=1, sort_keys=True) + "\n"
        (folder / EXTRACT_REPORT).write_text(text, encoding="utf-8")
