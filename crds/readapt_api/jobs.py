"""The contract between the operator and the Jobs that it starts.

``readapt-job KIND --request FILE`` reads one request (mounted from a ConfigMap), writes results into the store and
leaves a ``Summary`` as the container's termination message. Exit codes are those of ``readapt_api.errors``.

An input hash names the work, not the run: kind, contract version, algorithm version, digests of all inputs and the
parameters that affect the result. Images, uids and serving fields are no part of it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, model_validator

from readapt_api import bounds
from readapt_api.adaptation import UNGATED_POLICIES, UNGATED_RULE, GateMode, Metric, Policy
from readapt_api.artifacts import Architecture, Origin
from readapt_api.contract import Contract, Digest
from readapt_api.digest import digest_of

CONTRACT_VERSION = 1
ALGORITHM_VERSIONS = {"fetch": 1, "drift": 3, "extract": 3, "train": 2, "learn": 2, "adapt": 4}
"""Raised when a kind's results change for equal inputs; old results then no longer answer for new requests."""

STORE_MOUNT = "/store"
SOURCES_MOUNT = "/sources"
REQUEST_FILE = "/etc/readapt/request.json"
TERMINATION_MESSAGE_BYTES = 4096
MAX_TASKS = 16
"""Of one adapter."""
DRIFT_RANK = 32
"""Rank of the drift factors kept per linear module."""


class JobKind(StrEnum):
    FETCH = "fetch"
    DRIFT = "drift"
    EXTRACT = "extract"
    TRAIN = "train"
    LEARN = "learn"
    ADAPT = "adapt"


class FetchRole(StrEnum):
    BASE = "Base"
    CHECKPOINT = "Checkpoint"
    ADAPTER = "Adapter"
    """Becomes a Native variant of ``base``."""
    DATA = "Data"


class FetchSource(Contract):
    """One source: its URI for messages, where it is mounted, and the digest it must have if the user pinned one."""

    uri: str
    path: str
    digest: Digest | None = None
    name: str = ""
    """Data: the split, ``train``, ``validation``, ``test`` or ``inputs``."""


class FetchRequest(Contract):
    """Bring one source (or the splits of one data set) into the store, verify and describe it.

    Never answered from an old result: the source is read and hashed each time.
    """

    kind: Literal[JobKind.FETCH] = JobKind.FETCH
    role: FetchRole
    sources: tuple[FetchSource, ...] = Field(min_length=1, max_length=4)
    base: Digest | None = None
    """Adapter and Checkpoint: the base version whose shapes it must fit."""
    max_rank: bounds.LoraRank = 64
    """Adapter: larger ranks are refused."""
    prompt_field: str = "prompt"
    """Data: the stored examples have the keys ``prompt`` and, but for inputs, ``completion`` whatever the source calls
    them."""
    completion_field: str = "completion"

    @property
    def input_hash(self) -> Digest:
        return _hash(self, {"sources": {s: {"path"} for s in range(len(self.sources))}})


class DriftRequest(Contract):
    """The difference of two base versions per linear module: exact norm and low-rank factors."""

    kind: Literal[JobKind.DRIFT] = JobKind.DRIFT
    old_base: Digest
    new_base: Digest
    rank: int = DRIFT_RANK

    @property
    def input_hash(self) -> Digest:
        return _hash(self)


class GateSettings(Contract):
    """See ``LoRAAdapter.spec.gate``."""

    mode: GateMode = GateMode.ENFORCE
    metric: Metric = Metric.ACCURACY
    max_regression: bounds.MaxRegression = "0.03"
    confidence: bounds.Confidence = "0.95"
    max_samples: bounds.MaxSamples = 3000


class ExtractRequest(Contract):
    """A LoRA variant out of a full fine-tuned checkpoint, gated against that checkpoint."""

    kind: Literal[JobKind.EXTRACT] = JobKind.EXTRACT
    name: str
    """The adapter's served name, for messages."""
    base: Digest
    checkpoint: Digest
    fixed_rank: bounds.LoraRank | None = None
    energy: bounds.Energy | None = None
    relative_error: bounds.RelativeError | None = None
    budget: bounds.Budget | None = None
    """Exactly one of fixed_rank, energy, relative_error and budget; see ``v1alpha1.lora_adapter.Rank``."""
    max_rank: bounds.LoraRank = 64
    target_modules: tuple[str, ...] = ()
    """Suffixes of module names (``q_proj``); empty: all linear modules of the decoder layers."""
    data: Digest | None = None
    gate: GateSettings = GateSettings()

    @property
    def input_hash(self) -> Digest:
        return _hash(self, {"name": True})


class TrainRequest(Contract):
    """A LoRA variant out of nothing but examples; scored, not gated: there is nothing to compare it with."""

    kind: Literal[JobKind.TRAIN] = JobKind.TRAIN
    name: str
    """The adapter's served name, for messages."""
    base: Digest
    data: Digest
    rank: bounds.LoraRank = 8
    alpha: bounds.LoraAlpha = 16
    target_modules: tuple[str, ...] = ()
    """Suffixes of module names; empty: all linear modules of the decoder layers."""
    max_steps: bounds.MaxSteps = 600
    learning_rate: bounds.LearningRate = "1e-3"
    batch_size: bounds.BatchSize = 16
    metric: Metric = Metric.ACCURACY
    """Decides when to stop, and tells the score; not Agreement, for there is nobody to agree with."""

    @property
    def input_hash(self) -> Digest:
        return _hash(self, {"name": True})


class LearnTask(Contract):
    """One task of a sequence."""

    name: str
    data: Digest
    rank: bounds.LoraRank = 8
    max_steps: bounds.MaxSteps = 300
    learning_rate: bounds.LearningRate = "1e-3"
    batch_size: bounds.BatchSize = 16


class LearnRequest(Contract):
    """A variant that learns task after task (SD-LoRA); what the first tasks came to is kept for the next request."""

    kind: Literal[JobKind.LEARN] = JobKind.LEARN
    name: str
    """The adapter's served name, for messages."""
    base: Digest
    tasks: tuple[LearnTask, ...] = Field(min_length=1, max_length=MAX_TASKS)
    max_rank: bounds.LoraRank = 64
    """Of the served LoRA. What is learned does not depend on it."""

    @property
    def input_hash(self) -> Digest:
        return _hash(self, {"name": True})

    def prefix_hash(self, count: int) -> Digest:
        """Names what the first ``count`` tasks come to, at whatever rank it is served."""
        return _hash(self.model_copy(update={"tasks": self.tasks[:count]}), {"name": True, "max_rank": True})


class AdaptationSettings(Contract):
    """See ``LoRAAdapter.spec.adaptation``."""

    policy: Policy = Policy.AUTO
    min_retention: bounds.MinRetention = "0.9"
    trials: bounds.Trials = 8
    max_steps: bounds.MaxSteps = 300
    learning_rate: bounds.LearningRate = "2e-4"
    batch_size: bounds.BatchSize = 8


class AdaptItem(Contract):
    """One adapter to carry from the old to the new base."""

    name: str
    reference: Digest
    """The variant that was given, extracted, trained or learned on the old base; the gate compares with it."""
    data: Digest | None = None
    """None only where the gate is skipped."""
    adaptation: AdaptationSettings = AdaptationSettings()
    gate: GateSettings = GateSettings()

    @model_validator(mode="after")
    def _suits_its_gate(self) -> AdaptItem:
        skipped = self.gate.mode is GateMode.SKIP
        if self.data is None and not skipped:
            raise ValueError("data is needed unless the gate is skipped")
        if skipped and self.adaptation.policy not in UNGATED_POLICIES:
            raise ValueError(UNGATED_RULE)
        return self


class AdaptRequest(Contract):
    """Carry adapters over one base move; each item has its own input hash and result."""

    kind: Literal[JobKind.ADAPT] = JobKind.ADAPT
    old_base: Digest
    new_base: Digest
    drift: Digest
    items: tuple[AdaptItem, ...] = Field(min_length=1, max_length=64)

    def item_hash(self, item: AdaptItem) -> Digest:
        """The input hash of one item; grouping with other items does not change it."""
        return _hash(self.model_copy(update={"items": (item,)}), {"items": {0: {"name"}}})


def _hash(request: Contract, exclude: object = None) -> Digest:
    kind = str(request.model_dump()["kind"])
    document = request.model_dump(mode="json", by_alias=True, exclude=exclude)  # type: ignore[arg-type]
    return digest_of({"contract": CONTRACT_VERSION, "algorithm": ALGORITHM_VERSIONS[kind], "request": document})


Request = Annotated[
    FetchRequest | DriftRequest | ExtractRequest | TrainRequest | LearnRequest | AdaptRequest,
    Field(discriminator="kind"),
]


class Interval(Contract):
    """Confidence interval of the gain over the reference, in the metric's unit: positive is better, whatever the
    metric's direction. One-sided level on each end."""

    lower: float
    upper: float


class GateVerdict(StrEnum):
    PASSED = "Passed"
    FAILED = "Failed"
    UNDECIDED = "Undecided"
    """The examples were not enough, or the first of them left no hope; ``samples_needed`` says how many would be."""
    NOT_NEEDED = "NotNeeded"
    """Native, Trained, Incremental: there is nothing to compare with."""


class RungResult(Contract):
    """What one rung of the ladder came to."""

    origin: Origin
    verdict: GateVerdict
    metric: Metric = Metric.ACCURACY
    score: float
    reference: float
    """Score of the old pair (extract: of the checkpoint; train and learn: of the base alone) on the same examples."""
    interval: Interval
    samples: int
    samples_left: int | None = None
    """Not asked, because they would hardly have made the rung pass and another one was there to try."""
    samples_needed: int | None = None
    retention: float | None = None
    """1 is the new base's behaviour, 0 the old one's; None where it cannot be measured."""
    retention_floor: float | None = None
    seconds: float
    message: str = Field(default="", max_length=300)


class Outcome(Contract):
    """The result of extract, train, learn or one item of adapt; also what ``results/<input hash>.json`` holds."""

    name: str
    input_hash: Digest
    passed: bool
    variant: Digest | None = None
    """The variant that passed; none when the ladder is exhausted."""
    origin: Origin | None = None
    rank: int | None = None
    rungs: tuple[RungResult, ...] = ()
    """In the order they were tried; the last one decided."""
    repair_seconds: float = 0.0
    reason: str = ""
    """A reason of ``readapt_api.conditions``: GatePassed, GateFailed, GateUndecided, GateSkipped, RetentionTooLow."""
    message: str = Field(default="", max_length=500)
    evidence: Digest | None = None
    """sha256 of results/<hex>.evidence.json in the store: scores, seeds, curves, interval."""
    report: str | None = Field(default=None, max_length=128)
    """Path in the store of a page for people, results/<hex>.report.html; none when it could not be drawn."""
    data: Digest | None = None
    """Learn: the examples of all tasks as one Data artifact, to repair and judge the variant with."""


class FetchOutcome(Contract):
    """What a fetch found."""

    input_hash: Digest
    digest: Digest
    """Of the source. For role Adapter the variant has a digest of its own."""
    size_bytes: int
    architecture: Architecture | None = None
    variant: Digest | None = None
    rank: int | None = None
    files: int = 0
    samples: dict[str, int] = Field(default_factory=dict)
    """Data: examples per split."""


class DriftOutcome(Contract):
    """What a drift Job left."""

    input_hash: Digest
    digest: Digest
    relative_norm: float
    """‖W1 - W0‖ / ‖W0‖ over all linear modules."""
    captured_energy: float
    """Share of ‖W1 - W0‖² that the low-rank factors hold."""
    report: str | None = Field(default=None, max_length=128)
    """As that of ``Outcome``."""


class Summary(Contract):
    """The termination message, at most TERMINATION_MESSAGE_BYTES of JSON."""

    kind: JobKind
    ok: bool
    """False: ``reason`` and ``message`` say what was wrong, the exit code says whether to try again."""
    reason: str = ""
    message: str = Field(default="", max_length=800)
    fetch: FetchOutcome | None = None
    drift: DriftOutcome | None = None
    outcomes: tuple[Outcome, ...] = ()

    def outcome(self, input_hash: Digest) -> Outcome | None:
        """What came of the work with this hash; None where it is not told."""
        return next((o for o in self.outcomes if o.input_hash == input_hash), None)
