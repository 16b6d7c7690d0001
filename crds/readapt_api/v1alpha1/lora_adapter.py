"""``LoRAAdapter`` (rla): behaviour on top of a base model, under one served name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints

from readapt_api import bounds
from readapt_api.adaptation import UNGATED_POLICIES, UNGATED_RULE, GateMode, Metric, Policy
from readapt_api.artifacts import Origin
from readapt_api.conditions import Condition
from readapt_api.contract import Contract, Digest, Name, ServedName
from readapt_api.jobs import MAX_TASKS
from readapt_api.v1alpha1.shared import NAME_RULE, BaseModelRef, ObjectMeta, Source, map_list


def _fixed(field: str) -> dict[str, Any]:
    """A field that says what the weights are: another value is another adapter."""
    return bounds.cel(("self == oldSelf", f"{field} is immutable: add a new adapter instead"))


class AdapterSource(Source):
    """An existing PEFT adapter."""

    base_version: Name = Field(
        description="The version of the base that it was trained on.", json_schema_extra=_fixed("baseVersion")
    )


TargetModules = Annotated[
    tuple[Annotated[str, StringConstraints(max_length=64, pattern=r"^[A-Za-z0-9_]+$")], ...],
    Field(
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "set"},
        description="Linear modules such as q_proj; none: all of the decoder layers.",
    ),
]
_FIXED_MODULES = (
    # A rule of the field itself would not see it appear or go.
    "has(self.targetModules) == has(oldSelf.targetModules)"
    " && (!has(self.targetModules) || self.targetModules == oldSelf.targetModules)",
    "targetModules is immutable: add a new adapter instead",
)


class Rank(Contract):
    """How many ranks an extracted adapter gets."""

    model_config = ConfigDict(
        json_schema_extra=bounds.cel(
            (
                "[has(self.fixed), has(self.energy), has(self.relativeError), has(self.budget)]"
                ".filter(given, given).size() == 1",
                "exactly one of fixed, energy, relativeError and budget must be set",
            )
        )
    )
    fixed: bounds.LoraRank | None = None
    energy: bounds.Energy | None = Field(
        default=None, description="Share of the squared norm of the weight difference to keep, above 0 and at most 1."
    )
    relative_error: bounds.RelativeError | None = Field(
        default=None,
        description="Norm of what a module's factors miss, over that of its weight difference, above 0 and below 1.",
    )
    budget: bounds.Budget | None = Field(
        default=None,
        description="Parameters of the whole adapter, rank x (in + out) summed over its modules; the modules compete.",
    )


class CheckpointSource(Source):
    """A full fine-tuned checkpoint; the adapter is extracted from its difference to the base (PHLoRA).

    It is extracted once: what decides about the result cannot change.
    """

    base_version: Name = Field(json_schema_extra=_fixed("baseVersion"))
    rank: Rank = Field(default=Rank(energy="0.95"), json_schema_extra=_fixed("rank"))
    max_rank: bounds.LoraRank = Field(default=64, json_schema_extra=_fixed("maxRank"))
    target_modules: TargetModules = ()


class Data(Contract):
    """Examples, JSON Lines. They repair the adapter and judge the repair."""

    model_config = ConfigDict(
        json_schema_extra=bounds.cel(
            ("has(self.train) == has(self.validation)", "train and validation are given together"),
            ("has(self.train) || has(self.inputs)", "train and validation, or inputs, must be set"),
            ("!has(self.test) || has(self.train)", "test is given with train and validation"),
        )
    )
    train: Source | None = None
    validation: Source | None = None
    test: Source | None = Field(
        default=None, description="Judges alone. Without it a fixed part of validation is set aside for that."
    )
    inputs: Source | None = Field(
        default=None,
        description="Prompts without completions: what Refresh has the old pair answer. Where they are all there is "
        "they serve search and gate too, by Agreement.",
    )
    prompt_field: str = Field(default="prompt", min_length=1, max_length=64)
    completion_field: str = Field(default="completion", min_length=1, max_length=64)


class TrainSource(Contract):
    """Nothing yet: a LoRA is trained from ``spec.data``, once; what decides about the result cannot change."""

    rank: bounds.LoraRank = Field(default=8, json_schema_extra=_fixed("rank"))
    alpha: bounds.LoraAlpha = Field(default=16, json_schema_extra=_fixed("alpha"))
    target_modules: TargetModules = ()
    max_steps: bounds.MaxSteps = Field(default=600, json_schema_extra=_fixed("maxSteps"))
    learning_rate: bounds.LearningRate = Field(default="1e-3", json_schema_extra=_fixed("learningRate"))
    batch_size: bounds.BatchSize = Field(default=16, json_schema_extra=_fixed("batchSize"))


class TaskSource(Contract):
    """One task of an adapter that learns task after task, without the examples of earlier ones."""

    model_config = ConfigDict(
        json_schema_extra=bounds.cel(("has(self.data.train)", "a task is learned from data.train and data.validation"))
    )
    name: Name
    data: Data
    rank: bounds.LoraRank = Field(default=8, json_schema_extra=_fixed("rank"))
    max_steps: bounds.MaxSteps = Field(default=300, json_schema_extra=_fixed("maxSteps"))
    learning_rate: bounds.LearningRate = Field(default="1e-3", json_schema_extra=_fixed("learningRate"))
    batch_size: bounds.BatchSize = Field(default=16, json_schema_extra=_fixed("batchSize"))


_KINDS = ("adapter", "checkpoint", "train", "tasks")


class OneSource(Contract):
    """Exactly one of them."""

    model_config = ConfigDict(
        json_schema_extra=bounds.cel(
            (
                f"[{', '.join(f'has(self.{kind})' for kind in _KINDS)}].filter(x, x).size() == 1",
                "exactly one of adapter, checkpoint, train and tasks must be set",
            ),
            (
                " && ".join(f"has(self.{kind}) == has(oldSelf.{kind})" for kind in _KINDS),
                "the kind of source is immutable",
            ),
        )
    )
    adapter: AdapterSource | None = None
    checkpoint: CheckpointSource | None = Field(default=None, json_schema_extra=bounds.cel(_FIXED_MODULES))
    train: TrainSource | None = Field(default=None, json_schema_extra=bounds.cel(_FIXED_MODULES))
    tasks: tuple[TaskSource, ...] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_TASKS,
        description="Learned in this order (SD-LoRA). Tasks may be appended; those that are there stay as they are.",
        json_schema_extra=map_list("name")
        | bounds.cel(
            (
                # Indices are spelled out: what CEL would make of the two lists costs more than the API server allows.
                f"{[*range(MAX_TASKS)]}.all(i, i >= size(oldSelf)"
                " || (i < size(self) && self[i].name == oldSelf[i].name))",
                "tasks can only be appended",
            )
        ),
    )


class Search(Contract):
    trials: bounds.Trials = 8


class Tuning(Contract):
    max_steps: bounds.MaxSteps = 300
    learning_rate: bounds.LearningRate = "2e-4"
    batch_size: bounds.BatchSize = 8


class Adaptation(Contract):
    """How the adapter is carried to another version."""

    policy: Policy = Policy.AUTO
    min_retention: bounds.MinRetention = Field(
        default="0.9",
        description="Share of Copy's retention of the new base's behaviour that a repaired variant must keep.",
    )
    search: Search = Search()
    tuning: Tuning = Tuning()


class Gate(Contract):
    """The test that a variant must pass before anyone is served by it."""

    mode: GateMode = Field(
        default=GateMode.ENFORCE,
        description="Skip compares nothing: the old weights are copied. Without data an adapter moves by Skip alone.",
    )
    metric: Metric = Field(
        default=Metric.ACCURACY,
        description="; ".join(f"{m}: {m.unit.name}, {m.direction}" for m in Metric),
    )
    max_regression: bounds.MaxRegression = Field(
        default="0.03",
        description="Loss against the reference that is acceptable: a share (0.03 is 3 points), for TokenLoss nats.",
    )
    confidence: bounds.Confidence = "0.95"
    max_samples: bounds.MaxSamples = 3000


class AdapterServing(Contract):
    """How serving pods treat the adapter."""

    preload: bool = Field(default=False, description="Keep it in the pool of every pod as far as there is room.")
    priority: bounds.Priority = Field(
        default=0, description="Requests of larger ones are admitted first and lose their pages last."
    )


_HAS_LABELS = "!has(self.data) || has(self.data.train) || self.gate.mode == 'Skip'"


class LoRAAdapterSpec(Contract):
    """What is wished for."""

    model_config = ConfigDict(
        json_schema_extra=bounds.cel(
            (
                "has(self.servedName) == has(oldSelf.servedName)"
                " && (!has(self.servedName) || self.servedName == oldSelf.servedName)",
                "servedName cannot change, appear or disappear",
            ),
            (
                f"self.gate.mode != 'Skip' || self.adaptation.policy in {[p.value for p in UNGATED_POLICIES]}",
                UNGATED_RULE,
            ),
            (
                f"{_HAS_LABELS} || self.gate.metric == 'Agreement'",
                "without train and validation metric must be Agreement",
            ),
            (
                f"{_HAS_LABELS} || !(self.adaptation.policy in ['ReLoRA', 'Retrain'])",
                "without train and validation policy must be Auto, Copy, Transport or Refresh",
            ),
            (
                "!has(self.source.train) || (has(self.data) && has(self.data.train))",
                "source.train learns from data.train: it must be set",
            ),
            ("!has(self.source.tasks) || !has(self.data)", "each task of source.tasks has its own data"),
        )
    )
    base_model_ref: BaseModelRef = Field(json_schema_extra=bounds.cel(("self == oldSelf", "baseModelRef is immutable")))
    served_name: ServedName | None = Field(
        default=None, description="What clients send as `model`; otherwise metadata.name."
    )
    source: OneSource
    data: Data | None = Field(
        default=None, description="Without data an adapter moves to another version only where gate.mode is Skip."
    )
    adaptation: Adaptation = Adaptation()
    gate: Gate = Gate()
    serving: AdapterServing = AdapterServing()


class VariantStatus(Contract):
    """One cell of the matrix adapter x base version; a record."""

    base_digest: Digest
    source_digest: Digest
    base_version: str = Field(max_length=40)
    digest: Digest | None = Field(default=None, description="None while no variant has passed.")
    input_hash: Digest | None = None
    origin: Origin | None = None
    passed: bool = False
    reason: str = Field(default="", max_length=64)
    message: str = Field(default="", max_length=500)
    rank: int | None = None
    metric: Metric | None = Field(default=None, description="What score, reference and interval are in.")
    score: str | None = Field(default=None, max_length=16)
    reference: str | None = Field(default=None, max_length=16)
    copy_score: str | None = Field(default=None, max_length=16)
    interval: str | None = Field(
        default=None, max_length=40, description="Of the gain over the reference: positive is better."
    )
    retention: str | None = Field(default=None, max_length=16)
    repair_seconds: int | None = None
    ready_seconds: int | None = None
    job: str | None = Field(default=None, max_length=63)
    evidence: Digest | None = None
    report: str | None = Field(
        default=None, max_length=128, description="Path in the store of a page that shows how this came about."
    )


class TaskStatus(Contract):
    """The data of one task, as fetched; a record."""

    name: str = Field(max_length=40)
    data_key: Digest = Field(description="Hash of the data spec that dataDigest belongs to.")
    data_digest: Digest


class LoRAAdapterStatus(Contract):
    """Records (source and data digests, variants: may be read back) and output."""

    model_config = ConfigDict(extra="ignore")
    observed_generation: int = 0
    conditions: tuple[Condition, ...] = Field(default=(), max_length=16, json_schema_extra=map_list("type"))
    source_digest: Digest | None = None
    data_digest: Digest | None = None
    data_key: Digest | None = Field(default=None, description="Hash of the data spec that dataDigest belongs to.")
    tasks: tuple[TaskStatus, ...] = Field(default=(), max_length=MAX_TASKS, json_schema_extra=map_list("name"))
    served_version: str | None = Field(default=None, max_length=40)
    served_digest: Digest | None = None
    verified: str = Field(default="0/0", max_length=24)
    progress: str | None = Field(default=None, max_length=8, description="Of the Job that works for it now: 43%.")
    origin: str | None = Field(default=None, max_length=16)
    score: str | None = Field(default=None, max_length=16)
    variants: tuple[VariantStatus, ...] = Field(
        default=(), max_length=16, json_schema_extra=map_list("baseDigest", "sourceDigest")
    )


class LoRAAdapterResource(Contract):
    """The object as the API server stores it."""

    model_config = ConfigDict(extra="ignore", json_schema_extra=bounds.cel(NAME_RULE))
    api_version: Literal["readapt.dev/v1alpha1"] = "readapt.dev/v1alpha1"
    kind: Literal["LoRAAdapter"] = "LoRAAdapter"
    metadata: ObjectMeta
    spec: LoRAAdapterSpec
    status: LoRAAdapterStatus = LoRAAdapterStatus()

    @property
    def served_name(self) -> str:
        return self.spec.served_name or self.metadata.name
