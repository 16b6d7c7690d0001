"""Each stage of an adapter's way, one row per situation; no API server, no cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from readapt_api import conditions as c
from readapt_api.artifacts import Origin
from readapt_api.v1alpha1.base_model import BaseModelResource
from readapt_api.v1alpha1.lora_adapter import LoRAAdapterResource, LoRAAdapterStatus, VariantStatus
from readapt_operator.decide.adapter import AdapterPass, found_adapter, move_adapter
from readapt_operator.decide.plan import State, stalled, working
from readapt_operator.decide.variants import MAX_VARIANTS, record_variant
from readapt_operator.decide.versions import Drifts, Versions
from readapt_operator.observed import Observed
from readapt_operator.queue import Key
from readapt_testing.fake_world import base_model, checkpoint, lora_adapter

V1, V2, SOURCE, DATA, DRIFT, VARIANT = (f"sha256:{digit * 64}" for digit in "123456")
FETCHING = working(c.FETCHING, "fetching")


def cell(base: str = V1, version: str = "v1", **fields: Any) -> VariantStatus:
    passed = {"digest": VARIANT, "origin": Origin.NATIVE, "passed": True, "reason": c.GATE_NOT_NEEDED}
    return VariantStatus(base_digest=base, source_digest=SOURCE, base_version=version, **{**passed, **fields})


def at(
    source: dict[str, Any] | None = None,
    data: bool = True,
    version: str = "v2",
    spec: dict[str, Any] | None = None,
    **changes: Any,
) -> AdapterPass:
    """An adapter that has everything but the variant for v2."""
    body = base_model(version)
    body["metadata"]["uid"] = "base-uid"
    adapter = lora_adapter("a", source, data)
    adapter["spec"] |= spec or {}
    adapter["metadata"]["uid"] = "a-uid"
    seen = Observed(
        key=Key("default", "base"),
        now=datetime(2025, 1, 1, tzinfo=UTC),
        runtime_image="image",
        admin_key="",
        propagation_s=3.0,
        drain_limit_s=600.0,
        retry_s=10.0,
        base=None,
    )
    ready = AdapterPass(
        seen=seen,
        base=BaseModelResource.model_validate(body),
        adapter=LoRAAdapterResource.model_validate(adapter),
        versions=Versions({"v1": V1, "v2": V2}, ()),
        drifts=Drifts({(V1, V2): DRIFT}),
        conflicting=False,
        records=LoRAAdapterStatus(source_digest=SOURCE, variants=(cell(),)),
    )
    return replace(with_data(ready) if data else ready, **changes)


def with_data(ready: AdapterPass) -> AdapterPass:
    """The record of data that was fetched for exactly this spec."""
    fetch = next(t for t in found_adapter(ready).tasks if "role" in t.request.model_dump())
    records = ready.records.model_copy(update={"data_digest": DATA, "data_key": fetch.input_hash})
    return replace(ready, records=records)


def unrecorded(**gone: Any) -> Callable[[], AdapterPass]:
    def build() -> AdapterPass:
        ready = at()
        return replace(ready, records=ready.records.model_copy(update=gone))

    return build


W, S = State.WORKING, State.STALLED
SKIP = {"gate": {"mode": "Skip"}}
INPUTS = {"data": {"inputs": {"uri": "pvc://data/a/inputs.jsonl"}}, "gate": {"metric": "Agreement"}}
ROWS: dict[str, tuple[Callable[[], AdapterPass], State | None, str, list[str]]] = {
    "name taken": (lambda: at(conflicting=True), S, c.NAME_CONFLICT, []),
    "its base version is being fetched": (
        lambda: at(versions=Versions({"v1": FETCHING, "v2": V2}, ())), W, c.WAITING_FOR_BASE, []),
    "its base version is unknown": (
        lambda: at(versions=Versions({"v1": stalled(c.UNKNOWN_VERSION, "?"), "v2": V2}, ())), S, c.UNKNOWN_VERSION, []),
    "no source yet": (unrecorded(source_digest=None, variants=()), W, c.FETCHING, ["fetch"]),
    "made for another base meanwhile": (unrecorded(variants=(cell(V2, "v2"),)), W, c.FETCHING, ["fetch"]),
    "its own base is one that its gate failed on": (
        unrecorded(variants=(cell(origin=Origin.RELORA, passed=False, digest=None),)), W, c.FETCHING, ["fetch"]),
    "its own base is one that it was carried to": (
        unrecorded(variants=(cell(origin=Origin.RELORA),)), W, c.FETCHING, ["fetch"]),
    "no data yet, and it is needed": (unrecorded(data_digest=None), W, c.FETCHING, ["fetch"]),
    "no data yet, and it is not needed": (
        lambda: replace(unrecorded(data_digest=None)(), base=at(version="v1").base), None, "", ["fetch"]),
    "no data at all": (lambda: at(data=False), S, c.DATA_MISSING, []),
    "no data, and the gate is skipped": (lambda: at(data=False, spec=SKIP), W, c.ADAPTING, ["adapt"]),
    "data that cannot be had, and the gate is skipped": (
        lambda: replace(at(spec=SKIP), records=at(spec=SKIP).records.model_copy(update={"data_digest": None})),
        W, c.ADAPTING, ["fetch", "adapt"]),
    "inputs alone": (lambda: at(data=False, spec=INPUTS), W, c.FETCHING, ["fetch"]),
    "a checkpoint without data, and the gate is skipped": (
        lambda: at(checkpoint("b"), False, spec=SKIP, records=LoRAAdapterStatus(source_digest=SOURCE)),
        W, c.EXTRACTING, ["extract"]),
    "a checkpoint without data": (
        lambda: at(checkpoint("b"), False, records=LoRAAdapterStatus(source_digest=SOURCE)), S, c.DATA_MISSING, []),
    "a checkpoint to extract": (
        lambda: at(checkpoint("b"), records=replace_variants(at(checkpoint("b")))), W, c.EXTRACTING, ["extract"]),
    "the wished version cannot be fetched": (
        lambda: at(versions=Versions({"v1": V1, "v2": stalled(c.SOURCE_FAILED, "?")}, ())), W, c.WAITING_FOR_BASE, []),
    "drift is being measured": (
        lambda: at(drifts=Drifts({(V1, V2): working(c.MEASURING_DRIFT, "")})), W, c.WAITING_FOR_BASE, []),
    "drift cannot be measured": (
        lambda: at(drifts=Drifts({(V1, V2): stalled(c.DRIFT_FAILED, "shapes")})), S, c.DRIFT_FAILED, []),
    "all there but the variant": (at, W, c.ADAPTING, ["adapt"]),
    "native to the wished version": (lambda: at(version="v1"), None, "", []),
    "the variant is in the matrix": (unrecorded(variants=(cell(), cell(V2, "v2"))), None, "", []),
}  # fmt: skip


def replace_variants(ready: AdapterPass) -> LoRAAdapterStatus:
    return ready.records.model_copy(update={"variants": ()})


@pytest.mark.parametrize(("build", "state", "reason", "starts"), ROWS.values(), ids=ROWS)
def test_stages(build: Callable[[], AdapterPass], state: State | None, reason: str, starts: list[str]) -> None:
    ready = build()
    done = move_adapter(found_adapter(ready), ready.drifts)
    assert (done.verdict.state if done.verdict else None) is state, done.verdict
    assert (done.verdict.reason if done.verdict else "") == reason
    assert [s.task.kind for s in done.starts] == starts


def test_a_skipped_gate_asks_for_no_data_and_says_so() -> None:
    done = move_adapter(found_adapter(at(spec=SKIP)), at().drifts)
    (item,) = done.starts[-1].task.request.items  # type: ignore[union-attr]
    assert (item.data, item.gate.mode.value) == (None, "Skip")


def test_what_the_gate_is_told_is_what_the_resource_says() -> None:
    gate = {"metric": "TokenLoss", "maxRegression": "0.05", "confidence": "0.9", "maxSamples": 500}
    done = move_adapter(found_adapter(at(spec={"gate": gate, "adaptation": {"policy": "Retrain"}})), at().drifts)
    (item,) = done.starts[-1].task.request.items  # type: ignore[union-attr]
    assert item.gate.to_wire() == {"mode": "Enforce", **gate}
    assert item.adaptation.policy.value == "Retrain"


@pytest.mark.parametrize("rank", [{"fixed": 8}, {"energy": "0.9"}, {"relativeError": "0.3"}, {"budget": 1000}], ids=str)
def test_an_extraction_is_asked_for_the_rank_that_the_resource_says(rank: dict[str, Any]) -> None:
    source = checkpoint("b")
    source["checkpoint"]["rank"] = rank
    done = found_adapter(at(source, False, spec=SKIP, records=LoRAAdapterStatus(source_digest=SOURCE)))
    asked = done.starts[-1].task.request.to_wire()
    found = {key: asked.get(key) for key in ("fixedRank", "energy", "relativeError", "budget")}
    assert {key: value for key, value in found.items() if value is not None} == {
        {"fixed": "fixedRank"}.get(key, key): value for key, value in rank.items()
    }


def test_inputs_are_fetched_with_the_other_data() -> None:
    data = {name: {"uri": f"pvc://data/{name}"} for name in ("train", "validation", "inputs")}
    (task,) = [t for t in found_adapter(at(data=False, spec={"data": data})).tasks if t.kind == "fetch"]
    assert [s.name for s in task.request.sources] == ["train", "validation", "inputs"]  # type: ignore[union-attr]


def test_a_full_matrix_forgets_the_oldest_base_that_nobody_needs() -> None:
    bases = [f"sha256:{i:064x}" for i in range(MAX_VARIANTS + 1)]
    records = LoRAAdapterStatus(source_digest=SOURCE)
    for i, base in enumerate(bases):
        records = record_variant(records, cell(base, f"v{i}"), keep=(bases[0], base))
    kept = [v.base_digest for v in records.variants]
    assert len(kept) == MAX_VARIANTS
    assert bases[0] in kept
    assert bases[1] not in kept
