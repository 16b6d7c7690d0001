"""``BaseModel`` (rbm): a base model, its versions, and how it is served."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import ConfigDict, Field

from readapt_api.artifacts import Architecture
from readapt_api.bounds import LoraRank, TensorParallel, cel
from readapt_api.conditions import Condition
from readapt_api.contract import Contract, Digest, Name
from readapt_api.memory import Memory
from readapt_api.v1alpha1.shared import (
    NAME_RULE,
    ClaimRef,
    ObjectMeta,
    PodSettings,
    SecretRef,
    Source,
    map_list,
)


class Strategy(StrEnum):
    BLUE_GREEN = "BlueGreen"
    """Switch the Service once the new set is complete."""


class Stragglers(StrEnum):
    BLOCK = "Block"
    """An adapter without a passing variant holds the switch back."""


class Promotion(StrEnum):
    AUTOMATIC = "Automatic"


class DType(StrEnum):
    AUTO = "Auto"
    """Float32 on CPU, BFloat16 on GPU."""
    FLOAT32 = "Float32"
    BFLOAT16 = "BFloat16"


class BaseVersion(Contract):
    """One immutable set of weights."""

    name: Name = Field(description="How spec.version and adapters call this version.")
    source: Source


class Upgrade(Contract):
    """How the set moves from one version to the next."""

    strategy: Strategy = Strategy.BLUE_GREEN
    stragglers: Stragglers = Stragglers.BLOCK
    promotion: Promotion = Promotion.AUTOMATIC
    max_parallel_jobs: int = Field(default=4, ge=1, le=64, description="Jobs of this base that may run at once.")
    adapters_per_job: int = Field(
        default=4,
        ge=1,
        le=4,
        description="Adapters that one adapt Job carries over, one after the other with the bases in memory, where "
        "more of them wait than may run at once. They are told together when it ends.",
    )


class Serving(Contract):
    """The serving pods."""

    replicas: int = Field(default=1, ge=0, le=1000)
    max_model_len: int = Field(default=2048, ge=16, le=1048576, description="Prompt and answer, in tokens.")
    max_batch_tokens: int = Field(default=2048, ge=16, le=1048576, description="Tokens in one forward pass.")
    pool_memory: Memory = Field(
        default="4Gi", description="Of a pod, for KV cache and adapters together; tensor-parallel ranks share it out."
    )
    host_memory: Memory | None = Field(
        default=None,
        description="Of a pod beside the pool, for adapters that are not in it; others are read from the store again. "
        "Where it is unset: room for two adapters of rank maxRank, at least 96Mi.",
    )
    max_rank: LoraRank = 64
    tensor_parallel: TensorParallel = Field(
        default=1, description="Processes of a pod that share out the model; each takes a GPU of its own."
    )
    dtype: DType = DType.AUTO
    api_key_secret_ref: SecretRef | None = Field(
        default=None,
        description="A Secret; `api-key` lists, one a line, what clients may send as bearer token. It may change.",
    )
    first_token_seconds: int | None = Field(
        default=None,
        ge=1,
        le=600,
        description="Refuse requests that can no longer get their first token within this time, and keep the rest. "
        "Where it is unset every request waits for its turn.",
    )
    tenant_header: str | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        pattern=r"^[A-Za-z0-9-]+$",
        description="Request header that names the tenant, set by a gateway you trust: tenants are served evenly, and "
        "none sees another's cached prompts. Where it is unset there are no tenants.",
    )
    pod: PodSettings = PodSettings()


class Jobs(Contract):
    """The Jobs that fetch, measure and repair."""

    pod: PodSettings = PodSettings()
    max_attempts: int = Field(default=3, ge=1, le=20)
    active_deadline_seconds: int = Field(default=3600, ge=60, le=604800)


class BaseModelSpec(Contract):
    """What is wished for."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                "self.versions.exists(v, v.name == self.version)",
                "version must name an entry of versions",
            ),
            (
                "self.versions.exists(v, v.name == oldSelf.version)",
                "the version that was wished for until now cannot be removed in the same step",
            ),
        )
    )
    store: ClaimRef = Field(
        description="Where artifacts live.", json_schema_extra=cel(("self == oldSelf", "store is immutable"))
    )
    versions: tuple[BaseVersion, ...] = Field(min_length=1, max_length=16, json_schema_extra=map_list("name"))
    version: Name = Field(description="The version to serve.")
    suspend: bool = Field(default=False, description="No new Jobs and no switch while true.")
    upgrade: Upgrade = Upgrade()
    serving: Serving = Serving()
    jobs: Jobs = Jobs()

    def source_of(self, version: str) -> Source | None:
        """The source of a version, or None when there is no such entry."""
        return next((v.source for v in self.versions if v.name == version), None)


class VersionStatus(Contract):
    """A fetched version; a record."""

    name: str = Field(max_length=40)
    uri: str = Field(max_length=512)
    digest: Digest
    size_bytes: int
    architecture: Architecture | None = None


class DriftStatus(Contract):
    """A measured pair of versions; a record."""

    old_digest: Digest
    new_digest: Digest
    digest: Digest
    relative_norm: str = Field(max_length=24, description="‖W1 - W0‖ / ‖W0‖ over all linear modules.")
    report: str | None = Field(
        default=None, max_length=128, description="Path in the store of a page that shows what moved where."
    )


class UpgradeStatus(Contract):
    """The upgrade that is under way or was the last; a record."""

    started_at: str = Field(max_length=64)
    finished_at: str | None = Field(default=None, max_length=64)
    from_version: str | None = Field(default=None, max_length=40)
    to_version: str = Field(max_length=40)


class AdapterCounts(Contract):
    total: int = 0
    ready: int = 0
    adapting: int = 0
    failed: int = 0


class FailureSample(Contract):
    adapter: str = Field(max_length=63)
    reason: str = Field(max_length=64)
    message: str = Field(max_length=300)


class BaseModelStatus(Contract):
    """Records (versions, drifts, upgrade, version, revision: may be read back) and output."""

    model_config = ConfigDict(extra="ignore")
    observed_generation: int = 0
    conditions: tuple[Condition, ...] = Field(default=(), max_length=16, json_schema_extra=map_list("type"))
    version: str | None = Field(default=None, max_length=40, description="The version being served.")
    target_version: str | None = Field(default=None, max_length=40)
    revision: str | None = Field(default=None, max_length=63, description="The revision that the Service selects.")
    set: str | None = Field(default=None, max_length=71, description="Digest of the served set.")
    replicas: int = 0
    ready_replicas: int = 0
    selector: str | None = Field(default=None, max_length=256)
    upgrade: UpgradeStatus | None = None
    versions: tuple[VersionStatus, ...] = Field(default=(), max_length=32, json_schema_extra=map_list("name"))
    drifts: tuple[DriftStatus, ...] = Field(
        default=(), max_length=32, json_schema_extra=map_list("oldDigest", "newDigest")
    )
    adapters: AdapterCounts = AdapterCounts()
    adapters_ready: str = Field(default="0/0", max_length=24, description="For the column: ready/total.")
    failures: tuple[FailureSample, ...] = Field(
        default=(), max_length=10, json_schema_extra={"x-kubernetes-list-type": "atomic"}
    )


class BaseModelResource(Contract):
    """The object as the API server stores it."""

    model_config = ConfigDict(
        extra="ignore",
        json_schema_extra=cel(
            (
                "!has(self.status) || !has(self.status.version)"
                " || self.spec.versions.exists(v, v.name == self.status.version)",
                "the version that is being served cannot be removed from versions",
            ),
            NAME_RULE,
        ),
    )
    api_version: Literal["readapt.dev/v1alpha1"] = "readapt.dev/v1alpha1"
    kind: Literal["BaseModel"] = "BaseModel"
    metadata: ObjectMeta
    spec: BaseModelSpec
    status: BaseModelStatus = BaseModelStatus()
