"""What an upgrade is shown with: two base versions, an adapter, a checkpoint, and their data, all as folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SPLIT_FILES = ("train.jsonl", "validation.jsonl", "test.jsonl")


@dataclass(frozen=True, slots=True)
class Role:
    """One adapter of the show."""

    name: str
    kind: str
    """``adapter`` (a PEFT folder trained on v1) or ``checkpoint`` (a full fine-tuned model of v1)."""
    weights: Path
    data: Path
    """train.jsonl, validation.jsonl and test.jsonl."""
    rank: str = "rank: {energy: '0.95'}"
    """Checkpoint: how the rank of the extracted adapter is chosen, as YAML."""
    adaptation: str = ""
    """YAML of spec.adaptation, where it is not the cast's."""


@dataclass(frozen=True, slots=True)
class Cast:
    """Everything that has to lie on the sources volume before the show."""

    base: str
    v1: Path
    v2: Path
    roles: tuple[Role, ...]
    adaptation: str = "{tuning: {maxSteps: 120}}"
    """YAML of spec.adaptation. Tuning is looked at six times: here after every 20 steps."""
    gate: str = "{maxRegression: '0.03', maxSamples: 3000}"
    serving: str = "{maxModelLen: 512, poolMemory: 512Mi}"
    questions: tuple[str, ...] = (
        "The capital of France is",
        "Once upon a time there was a",
        "To boil an egg you first",
        "The three primary colours are",
        "My favourite season is winter because",
        "A list of things to pack:",
    )
    """What clients ask every model during the upgrade; away from the adapters' tasks old and new sets differ most."""

    def folders(self) -> dict[str, Path]:
        """Path on the sources volume to local folder."""
        return {"base/v1": self.v1, "base/v2": self.v2, **{f"{role.name}/weights": role.weights for role in self.roles}}

    def files(self) -> dict[str, Path]:
        """Path on the sources volume to local file: of a data folder nothing but the three splits."""
        return {f"{role.name}/data/{name}": role.data / name for role in self.roles for name in SPLIT_FILES}
