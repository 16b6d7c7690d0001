"""What lies in the store.

    artifacts/<hex of digest>/   the files, then manifest.json (written last: no manifest, no artifact)
    results/<hex of input hash>.json
    tmp/                         being written; anything here may be deleted

An artifact is found by its digest alone. Its files are covered by the digest, its attachments (probe, evidence)
are listed with their sha256 and are not: two equal Jobs may measure them differently.
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from readapt_api.contract import Contract, Digest
from readapt_api.digest import FileEntry

MANIFEST = "manifest.json"
PROBE = "probe.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
MAGNITUDES = "magnitudes.json"
"""Of a variant that learned task after task: per block and module, the scale of a direction of norm 1."""


class ArtifactKind(StrEnum):
    BASE = "Base"
    """A Hugging Face model folder: config.json, *.safetensors, tokenizer."""
    CHECKPOINT = "Checkpoint"
    """The same for a full fine-tuned model."""
    DATA = "Data"
    """train.jsonl and validation.jsonl, test.jsonl, inputs.jsonl, as far as they were given."""
    DRIFT = "Drift"
    """drift.safetensors (low-rank factors per linear module) and drift.json (exact norms)."""
    VARIANT = "Variant"
    """A PEFT LoRA folder for one base version."""


class Origin(StrEnum):
    """How a variant came about."""

    NATIVE = "Native"
    EXTRACTED = "Extracted"
    TRAINED = "Trained"
    INCREMENTAL = "Incremental"
    """Learned task after task."""
    COPIED = "Copied"
    REFITTED = "Refitted"
    """Of an Incremental variant: its directions with magnitudes fitted to another base."""
    TRANSPORTED = "Transported"
    """The old pair's behaviour on the task's prompts, solved for layer by layer."""
    RELORA = "ReLoRA"
    REFRESHED = "Refreshed"
    """Learned from what the old pair answers."""
    RETRAINED = "Retrained"
    """Learned from scratch, from the training examples."""


class Architecture(Contract):
    """The facts of a base model that adapters and serving depend on."""

    model_type: str = Field(max_length=64)
    hidden_size: int
    num_layers: int
    vocab_size: int
    parameters: int
    dtype: str = Field(max_length=16)


class FactorBlock(Contract):
    """One block of LoRA factors; a variant's weights are the sum of its blocks, each times its scale.

    Serving reads ADAPTER_WEIGHTS alone: the sum as one LoRA, exact or of a bounded rank.
    """

    weights: str = ADAPTER_WEIGHTS
    scale: str = "1"
    scales: str | None = None
    """File with one more scale per module (MAGNITUDES), so that variants can share the factors."""
    task: str | None = None
    """What was learned with it."""


class Provenance(Contract):
    """Where a variant comes from; never part of its digest."""

    origin: Origin
    source: Digest
    """The artifact that it was made of: the fetched adapter or checkpoint, or the reference variant."""
    job: str = ""
    input_hash: Digest | None = None
    parameters: dict[str, str] = Field(default_factory=dict)


class Manifest(Contract):
    """manifest.json of every artifact."""

    version: int = 1
    kind: ArtifactKind
    digest: Digest
    files: tuple[FileEntry, ...]
    attachments: tuple[FileEntry, ...] = ()
    base: Digest | None = None
    """Variant: the base version it belongs to."""
    architecture: Architecture | None = None
    """Base and Checkpoint."""
    rank: int | None = None
    """Variant: its largest rank."""
    blocks: tuple[FactorBlock, ...] = ()
    """Variant."""
    provenance: Provenance | None = None

    @property
    def size_bytes(self) -> int:
        return sum(f.size for f in self.files)


class ProbePrompt(Contract):
    """What an adapter does to one short prompt, measured by the Job that made the variant."""

    token_ids: tuple[int, ...] = Field(min_length=2, max_length=64)
    top_ids: tuple[int, ...] = Field(min_length=1, max_length=64)
    """The tokens whose log-probabilities after the last prompt token are compared."""
    shift: tuple[float, ...]
    """log p(base + adapter) - log p(base) for each of ``top_ids``, natural logarithm."""


class Probe(Contract):
    """probe.json: a pod that holds the same weights over the same base measures the same shifts."""

    version: int = 1
    dtype: str = "float32"
    prompts: tuple[ProbePrompt, ...] = Field(min_length=1, max_length=16)
