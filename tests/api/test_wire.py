"""Documents survive the wire, unknown fields are refused, and pydantic refuses what the schema refuses."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from readapt_api.artifacts import Architecture, ArtifactKind, Manifest, Origin, Probe, ProbePrompt, Provenance
from readapt_api.contract import Contract
from readapt_api.digest import FileEntry
from readapt_api.errors import EXIT_BAD_INPUT, EXIT_TRY_AGAIN, ReadaptError, Terminal, Transient
from readapt_api.jobs import (
    TERMINATION_MESSAGE_BYTES,
    AdaptationSettings,
    AdaptItem,
    DriftRequest,
    FetchOutcome,
    FetchRequest,
    FetchRole,
    FetchSource,
    GateSettings,
    GateVerdict,
    Interval,
    JobKind,
    Outcome,
    Request,
    RungResult,
    Summary,
)
from readapt_api.serving import AdapterState, PodAdapter, PodState
from readapt_api.v1alpha1.base_model import BaseModelResource
from readapt_api.v1alpha1.lora_adapter import LoRAAdapterResource
from readapt_testing.manifests import DIGEST, base_model, edited, lora_adapter

RUNG = RungResult(
    origin=Origin.RELORA,
    verdict=GateVerdict.PASSED,
    score=0.9,
    reference=0.91,
    interval=Interval(lower=-0.02, upper=0.0),
    samples=400,
    retention=0.95,
    retention_floor=0.9,
    seconds=12.5,
)
OUTCOME = Outcome(
    name="a" * 63, input_hash=DIGEST, passed=True, variant=DIGEST, origin=Origin.RELORA, rungs=(RUNG, RUNG)
)
DOCUMENTS: list[Contract] = [
    FetchRequest(role=FetchRole.BASE, sources=(FetchSource(uri="pvc://c/x", path="/sources/c/x"),)),
    DriftRequest(old_base=DIGEST, new_base=DIGEST),
    Summary(kind=JobKind.ADAPT, ok=True, outcomes=(OUTCOME,)),
    Summary(kind=JobKind.FETCH, ok=True, fetch=FetchOutcome(input_hash=DIGEST, digest=DIGEST, size_bytes=1)),
    Manifest(
        kind=ArtifactKind.VARIANT,
        digest=DIGEST,
        files=(FileEntry(name="a/b", size=1, sha256="0" * 64),),
        architecture=Architecture(
            model_type="llama", hidden_size=1, num_layers=1, vocab_size=1, parameters=1, dtype="float32"
        ),
        provenance=Provenance(origin=Origin.NATIVE, source=DIGEST),
    ),
    Probe(prompts=(ProbePrompt(token_ids=(1, 2), top_ids=(3,), shift=(0.5,)),)),
    PodState(
        revision="r",
        base=DIGEST,
        sequence=1,
        set_digest=None,
        ready=True,
        draining=False,
        in_flight=0,
        connections=0,
        adapters=(PodAdapter(name="a", digest=DIGEST, state=AdapterState.VERIFIED),),
    ),
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: type(document).__name__)
def test_round_trip(document: Contract) -> None:
    wire = json.loads(json.dumps(document.to_wire()))

    assert type(document).model_validate(wire) == document
    assert not any("_" in key for key in keys_of(wire))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: type(document).__name__)
def test_unknown_field_is_refused(document: Contract) -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        type(document).model_validate(document.to_wire() | {"surprise": 1})


def keys_of(document: Any) -> set[str]:
    """All keys of nested objects but those of free maps."""
    if isinstance(document, list):
        return {key for item in document for key in keys_of(item)}
    if isinstance(document, dict):
        return set(document) | {key for value in document.values() for key in keys_of(value)}
    return set()


def test_kind_picks_the_request() -> None:
    wire = {"kind": "drift", "oldBase": DIGEST, "newBase": DIGEST}

    assert TypeAdapter(Request).validate_python(wire) == DriftRequest(old_base=DIGEST, new_base=DIGEST)
    with pytest.raises(ValidationError):
        TypeAdapter(Request).validate_python({"kind": "learn"})


def test_summary_of_one_adapter_fits_a_termination_message() -> None:
    longest = RUNG.model_copy(update={"message": "m" * 300})
    found = {"evidence": DIGEST, "report": "r" * 128}
    outcome = OUTCOME.model_copy(update={"rungs": (longest, longest), "message": "m" * 500, **found})
    summary = Summary(kind=JobKind.ADAPT, ok=True, outcomes=(outcome,), message="m" * 800)

    assert len(json.dumps(summary.to_wire())) <= TERMINATION_MESSAGE_BYTES


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_are_finite(number: float) -> None:
    with pytest.raises(ValidationError):
        Interval(lower=number, upper=0.0)


@pytest.mark.parametrize(
    "uri",
    [
        "pvc://c/../x",
        "pvc://c/x/..",
        "pvc://c/x/../y",
        "pvc://c/./x",
        "pvc://c//x",
        "pvc://c/x/",
        "pvc://c/.hidden",
        "pvc://C/x",
        "pvc://c",
        "pvc:///x",
        "pvc://c/x?y",
        "pvc://c/x\n",
        "pvc://c/%2e%2e/x",
        "pvc://u:p@c/x",
        "s3://c/x",
        "/c/x",
        "",
    ],
)
def test_uri_is_refused(uri: str) -> None:
    with pytest.raises(ValidationError):
        BaseModelResource.model_validate(edited(base_model(), {"spec.versions.0.source.uri": uri}))


@pytest.mark.parametrize("uri", ["pvc://c/x", "pvc://my-claim.1/a/b/c.jsonl", "pvc://c/a..b", "pvc://c/-x_@+=,1"])
def test_uri_is_accepted(uri: str) -> None:
    found = BaseModelResource.model_validate(edited(base_model(), {"spec.versions.0.source.uri": uri}))

    assert found.spec.versions[0].source.uri == uri


@pytest.mark.parametrize("field", ["poolMemory", "hostMemory"])
@pytest.mark.parametrize(
    ("memory", "accepted"),
    [("4Gi", True), ("1.5Gi", True), ("4000M", True), ("4G", True), ("500m", False), ("0", False), ("0.0Gi", False)],
)
def test_memory_is_what_a_serving_process_understands(field: str, memory: str, accepted: bool) -> None:
    document = edited(base_model(), {f"spec.serving.{field}": memory})
    with nullcontext() if accepted else pytest.raises(ValidationError, match=field):
        BaseModelResource.model_validate(document)


@pytest.mark.parametrize(
    ("settings", "field", "path", "value"),
    [
        (AdaptationSettings, "min_retention", "adaptation.minRetention", "1.01"),
        (AdaptationSettings, "trials", "adaptation.search.trials", 3),
        (AdaptationSettings, "trials", "adaptation.search.trials", 65),
        (AdaptationSettings, "max_steps", "adaptation.tuning.maxSteps", 0),
        (AdaptationSettings, "learning_rate", "adaptation.tuning.learningRate", "0"),
        (AdaptationSettings, "learning_rate", "adaptation.tuning.learningRate", "1.5"),
        (AdaptationSettings, "batch_size", "adaptation.tuning.batchSize", 1025),
        (GateSettings, "max_regression", "gate.maxRegression", "0.0"),
        (GateSettings, "max_regression", "gate.maxRegression", "3"),
        (GateSettings, "confidence", "gate.confidence", "0.5"),
        (GateSettings, "confidence", "gate.confidence", "0.99999"),
        (GateSettings, "max_samples", "gate.maxSamples", 9),
    ],
)
def test_resources_and_jobs_refuse_the_same_settings(
    settings: type[Contract], field: str, path: str, value: object
) -> None:
    with pytest.raises(ValidationError) as from_job:
        settings.model_validate({field: value})
    with pytest.raises(ValidationError) as from_resource:
        LoRAAdapterResource.model_validate(edited(lora_adapter(), {f"spec.{path}": value}))

    assert from_resource.value.errors()[0]["msg"] == from_job.value.errors()[0]["msg"]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({}, "data is needed unless the gate is skipped"),
        ({"gate": {"mode": "Skip"}, "adaptation": {"policy": "ReLoRA"}}, "policy must be Auto or Copy"),
    ],
)
def test_an_item_that_could_not_be_gated_is_no_request(item: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AdaptItem.model_validate({"name": "a", "reference": DIGEST, **item})
    assert AdaptItem.model_validate({"name": "a", "reference": DIGEST, "gate": {"mode": "Skip"}}).data is None


def test_resources_ignore_what_a_newer_server_adds() -> None:
    document = edited(lora_adapter(), {"metadata.managedFields": [], "status.somethingNew": 1, "metadata.uid": "u"})

    found = LoRAAdapterResource.model_validate(document)

    assert (found.metadata.uid, found.served_name) == ("u", "adapter")


def test_errors_say_how_to_exit() -> None:
    assert (Transient.exit_code, Terminal.exit_code) == (EXIT_TRY_AGAIN, EXIT_BAD_INPUT) == (75, 64)
    assert issubclass(Transient, ReadaptError)
    assert not issubclass(Terminal, Transient)
