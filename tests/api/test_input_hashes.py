"""What changes an input hash, and what does not."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from readapt_api import jobs
from readapt_api.adaptation import GateMode, Metric, Policy
from readapt_api.jobs import (
    AdaptationSettings,
    AdaptItem,
    AdaptRequest,
    DriftRequest,
    ExtractRequest,
    FetchRequest,
    FetchRole,
    FetchSource,
    GateSettings,
)

A, B, C, D = (f"sha256:{letter * 64}" for letter in "abcd")
FETCH = FetchRequest(role=FetchRole.ADAPTER, sources=(FetchSource(uri="pvc://c/x", path="/sources/c/x"),), base=A)
DRIFT = DriftRequest(old_base=A, new_base=B)
EXTRACT = ExtractRequest(name="one", base=A, checkpoint=B, energy="0.95", data=C)
ITEM = AdaptItem(name="one", reference=C, data=D)
ADAPT = AdaptRequest(old_base=A, new_base=B, drift=C, items=(ITEM,))


def source(**change: Any) -> tuple[FetchSource, ...]:
    return (FETCH.sources[0].model_copy(update=change),)


def test_hash_is_that_of_contract_algorithm_and_request() -> None:
    request = {"kind": "drift", "oldBase": A, "newBase": B, "rank": 32}
    text = json.dumps({"algorithm": 3, "contract": 1, "request": request}, sort_keys=True, separators=(",", ":"))

    assert DRIFT.input_hash == f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


@pytest.mark.parametrize(
    "change",
    [
        {"role": FetchRole.CHECKPOINT},
        {"base": B},
        {"max_rank": 32},
        {"prompt_field": "question"},
        {"completion_field": "answer"},
        {"sources": source(uri="pvc://c/y")},
        {"sources": source(digest=B)},
        {"sources": source(name="train")},
    ],
    ids=str,
)
def test_fetch_depends_on(change: dict[str, Any]) -> None:
    assert FETCH.model_copy(update=change).input_hash != FETCH.input_hash


def test_fetch_does_not_depend_on_where_the_source_is_mounted() -> None:
    assert FETCH.model_copy(update={"sources": source(path="/elsewhere")}).input_hash == FETCH.input_hash


@pytest.mark.parametrize("change", [{"old_base": C}, {"new_base": C}, {"rank": 8}], ids=str)
def test_drift_depends_on(change: dict[str, Any]) -> None:
    assert DRIFT.model_copy(update=change).input_hash != DRIFT.input_hash


@pytest.mark.parametrize(
    "change",
    [
        {"base": C},
        {"checkpoint": C},
        {"energy": "0.9"},
        {"energy": None, "fixed_rank": 8},
        {"energy": None, "relative_error": "0.3"},
        {"energy": None, "budget": 1000},
        {"max_rank": 32},
        {"target_modules": ("q_proj",)},
        {"data": D},
        {"data": None},
        {"gate": GateSettings(max_regression="0.05")},
    ],
    ids=str,
)
def test_extract_depends_on(change: dict[str, Any]) -> None:
    assert EXTRACT.model_copy(update=change).input_hash != EXTRACT.input_hash


def test_names_are_for_messages_only() -> None:
    assert EXTRACT.model_copy(update={"name": "two"}).input_hash == EXTRACT.input_hash
    assert ADAPT.item_hash(ITEM.model_copy(update={"name": "two"})) == ADAPT.item_hash(ITEM)


@pytest.mark.parametrize(
    "change",
    [
        {"reference": D},
        {"data": C},
        {"adaptation": AdaptationSettings(policy=Policy.COPY)},
        {"adaptation": AdaptationSettings(min_retention="0.8")},
        {"adaptation": AdaptationSettings(trials=9)},
        {"adaptation": AdaptationSettings(max_steps=301)},
        {"adaptation": AdaptationSettings(learning_rate="1e-4")},
        {"adaptation": AdaptationSettings(batch_size=16)},
        {"gate": GateSettings(confidence="0.9")},
        {"gate": GateSettings(max_samples=100)},
        {"gate": GateSettings(metric=Metric.F1)},
        {"gate": GateSettings(mode=GateMode.SKIP)},
    ],
    ids=str,
)
def test_adapt_item_depends_on(change: dict[str, Any]) -> None:
    assert ADAPT.item_hash(ITEM.model_copy(update=change)) != ADAPT.item_hash(ITEM)


@pytest.mark.parametrize("change", [{"old_base": D}, {"new_base": D}, {"drift": D}], ids=str)
def test_adapt_item_depends_on_the_move(change: dict[str, Any]) -> None:
    assert ADAPT.model_copy(update=change).item_hash(ITEM) != ADAPT.item_hash(ITEM)


def test_grouping_does_not_change_an_items_hash() -> None:
    other = ITEM.model_copy(update={"reference": D, "name": "other"})
    together = ADAPT.model_copy(update={"items": (other, ITEM)})

    assert together.item_hash(ITEM) == ADAPT.item_hash(ITEM)
    assert together.item_hash(other) != together.item_hash(ITEM)


@pytest.mark.parametrize("request_", [FETCH, DRIFT, EXTRACT], ids=lambda request: request.kind.value)
def test_new_algorithm_or_contract_is_new_work(request_: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = request_.input_hash
    monkeypatch.setitem(jobs.ALGORITHM_VERSIONS, request_.kind.value, 9)
    algorithm = request_.input_hash
    monkeypatch.setattr(jobs, "CONTRACT_VERSION", 2)

    assert len({before, algorithm, request_.input_hash}) == 3
