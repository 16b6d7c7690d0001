"""Every condition type and reason, documented once.

Conditions are output: the operator never reads back one it wrote. Reconciling and Stalled are never both there.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from readapt_api.contract import Contract

READY = "Ready"
"""BaseModel: the served set answers. LoRAAdapter: verified on every ready pod of the served revision, at least one."""
UP_TO_DATE = "UpToDate"
"""BaseModel: the wished version is served with every adapter. LoRAAdapter: a passing variant for the wished version."""
SOURCE_READY = "SourceReady"
"""The sources are in the store and known by their digests."""
ADAPTERS_READY = "AdaptersReady"
"""BaseModel: every adapter has a passing variant for the wished version."""
ROLLED_OUT = "RolledOut"
"""BaseModel: the Service selects the pods of the wished set and older pods have drained."""
VARIANT_READY = "VariantReady"
"""LoRAAdapter: there is a passing variant for the wished version."""
RECONCILING = "Reconciling"
"""There is work under way. Absent otherwise."""
STALLED = "Stalled"
"""A person must act; nothing is retried until an input of the work or ``readapt.dev/retry`` changes."""

# Reasons of good news.
SERVING = "Serving"
VERIFIED = "Verified"
VERSION_SERVED = "VersionServed"
FETCHED = "Fetched"
ALL_ADAPTERS_PASSED = "AllAdaptersPassed"
SWITCHED = "Switched"
GATE_NOT_NEEDED = "GateNotNeeded"
"""A variant that was given, trained or learned: there is nothing to compare it with."""
GATE_PASSED = "GatePassed"
GATE_SKIPPED = "GateSkipped"
"""gate.mode is Skip: the variant was not compared with anything."""

# Reasons of work under way.
FETCHING = "Fetching"
EXTRACTING = "Extracting"
TRAINING = "Training"
LEARNING = "Learning"
MEASURING_DRIFT = "MeasuringDrift"
ADAPTING = "Adapting"
WAITING_FOR_BASE = "WaitingForBase"
WAITING_FOR_ADAPTERS = "WaitingForAdapters"
WAITING_FOR_SLOT = "WaitingForSlot"
"""maxParallelJobs are running."""
ROLLING_OUT = "RollingOut"
"""Pods of the new revision start, register and verify."""
DRAINING = "Draining"
RETRYING = "Retrying"
"""A Job failed for a reason that may pass; the next attempt is due."""
VERIFYING = "Verifying"
NOT_SERVED_YET = "NotServedYet"
SUSPENDED = "Suspended"
"""spec.suspend is true: no new Jobs, no switch."""

# Reasons to stall.
UNKNOWN_VERSION = "UnknownVersion"
BASE_NOT_FOUND = "BaseNotFound"
SOURCE_FAILED = "SourceFailed"
"""Missing, of another digest than pinned, truncated, not finite, or of shapes that do not fit."""
EXTRACTION_FAILED = "ExtractionFailed"
TRAINING_FAILED = "TrainingFailed"
LEARNING_FAILED = "LearningFailed"
DRIFT_FAILED = "DriftFailed"
ADAPTATION_FAILED = "AdaptationFailed"
GATE_FAILED = "GateFailed"
GATE_UNDECIDED = "GateUndecided"
RETENTION_TOO_LOW = "RetentionTooLow"
DATA_MISSING = "DataMissing"
"""The version changes, there is no data to gate a variant with, and gate.mode is not Skip."""
NAME_CONFLICT = "NameConflict"
"""The base itself or another, older adapter of it has the served name."""
STRAGGLERS_BLOCK = "StragglersBlock"
"""Adapters without a passing variant hold the switch back (upgrade.stragglers: Block)."""
FOREIGN_OBJECT = "ForeignObject"
"""An object of a name that Readapt needs belongs to somebody else; it is neither adopted nor deleted."""
JOB_FAILED = "JobFailed"
"""maxAttempts are used up."""
SERVING_FAILED = "ServingFailed"
"""The server of a pod ended with exit code 64: it would refuse the same base and settings again."""
VERIFICATION_FAILED = "VerificationFailed"
"""A pod refused the variant: its weights do not do what the Job recorded."""
UNREADABLE = "Unreadable"
"""It was written for another version of Readapt, and this one cannot read it; what it serves stays."""
BUG = "Bug"
"""The operator raised what nobody foresaw while it decided about this object; its neighbours are not affected."""


class Condition(Contract):
    """metav1.Condition."""

    type: str = Field(max_length=316)
    status: Literal["True", "False", "Unknown"]
    reason: str = Field(min_length=1, max_length=1024)
    message: str = Field(max_length=32768)
    last_transition_time: str = Field(max_length=64, json_schema_extra={"format": "date-time"})
    observed_generation: int = Field(default=0, ge=0)
