"""Jobs that a restart begins anew: stopped right before each durable write, the next run ends as an undisturbed one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from readapt_api.jobs import DriftRequest, ExtractRequest, FetchRequest, FetchRole, FetchSource, Request

pytestmark = [
    pytest.mark.fault,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]
CODES = {"SIGKILL": -9, "SIGTERM": 75, "full": 75}
REASONS = {"SIGTERM": "Terminated", "full": "StoreFull"}


def lives(bench: Any, request: Request, death: str) -> dict[str, Any]:
    path = bench.folder / "request.json"
    path.write_text(json.dumps(request.to_wire()))
    scratch = bench.folder / "scratch"
    scratch.mkdir()
    bench.store.root.mkdir(exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "readapt_testing.mortal_job",
        death,
        "1",
        str(bench.store.root),
        str(path),
        str(scratch),
    ]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


def check(found: dict[str, Any], death: str) -> None:
    undisturbed = found["undisturbed"]
    assert undisturbed["code"] == 0
    for life in found["lives"]:
        stopped, again = life["stopped"], life["again"]
        assert stopped["code"] == CODES[death], life
        assert stopped["summary"].get("reason") == REASONS.get(death), life
        assert death == "SIGKILL" or not [name for name in stopped["leftovers"] if name.startswith("tmp/")], life
        assert again["code"] == 0, life
        assert digests(again["summary"]) == digests(undisturbed["summary"]), life


def digests(summary: dict[str, Any]) -> list[str]:
    if "drift" in summary:
        return [summary["drift"]["digest"]]
    if "fetch" in summary:
        return [summary["fetch"]["digest"], summary["fetch"].get("variant", "")]
    return [outcome["variant"] for outcome in summary["outcomes"]]


@pytest.mark.parametrize("death", CODES)
def test_drift(bench: Any, drift_request: DriftRequest, death: str) -> None:
    found = lives(bench, drift_request, death)
    assert len(found["lives"]) == 3, "artifact, page and result"
    check(found, death)


@pytest.mark.parametrize("death", CODES)
def test_extract(bench: Any, extract_request: ExtractRequest, death: str) -> None:
    found = lives(bench, extract_request, death)
    assert len(found["lives"]) >= 4
    check(found, death)


@pytest.mark.parametrize("death", CODES)
@pytest.mark.parametrize("role", FetchRole)
def test_fetch(bench: Any, source: Callable[..., FetchSource], role: FetchRole, death: str) -> None:
    base = None
    if role in (FetchRole.ADAPTER, FetchRole.CHECKPOINT):
        base = bench.run(FetchRequest(role=FetchRole.BASE, sources=(source("v1"),))).summary.fetch.digest
    names = {FetchRole.BASE: ("v1",), FetchRole.ADAPTER: ("adapter",), FetchRole.CHECKPOINT: ("checkpoint",)}
    parts = [source(name) for name in names.get(role, ())]
    parts = parts or [source(f"{split}.jsonl", split) for split in ("train", "validation", "test")]
    fields = {"prompt_field": "text", "completion_field": "label"}
    found = lives(bench, FetchRequest(role=role, sources=tuple(parts), base=base, **fields), death)
    assert found["lives"]
    check(found, death)
