"""The frame around every Job: drift and extract, records, signals, exit codes, the termination message."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from readapt_api.adaptation import GateMode, Metric, Policy
from readapt_api.artifacts import ArtifactKind, Origin
from readapt_api.jobs import (
    AdaptItem,
    AdaptRequest,
    DriftRequest,
    ExtractRequest,
    GateSettings,
    GateVerdict,
    Interval,
    JobKind,
    Outcome,
    RungResult,
    Summary,
)
from readapt_runtime.adapt import ladder
from readapt_runtime.jobs.main import run
from readapt_runtime.jobs.summary import failure, to_bytes
from readapt_runtime.progress import JsonLog

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
DIGEST = "sha256:" + "5" * 64


def test_drift_is_measured_once_and_then_recorded(bench: Any, drift_request: DriftRequest, sources: Path) -> None:
    ended = bench.run(drift_request)
    assert ended.code == 0
    old, new = (load_file(sources / name / "model.safetensors") for name in ("v1", "v2"))
    linear = [name for name in old if "_proj" in name]
    moved = sum(float((new[n].double() - old[n].double()).square().sum()) for n in linear)
    before = sum(float(old[n].double().square().sum()) for n in linear)
    assert ended.summary.drift.relative_norm == pytest.approx((moved / before) ** 0.5, rel=1e-6)
    assert bench.store.open(ended.summary.drift.digest).manifest.kind is ArtifactKind.DRIFT
    assert ended.summary.drift.report == f"results/{drift_request.input_hash.removeprefix('sha256:')}.report.html"
    assert 'id="energy"' in (bench.store.root / ended.summary.drift.report).read_text()
    assert bench.run(drift_request) == ended


_RECORDED = """
import sys
from readapt_runtime.jobs.main import run
code = run(sys.argv[1:])
assert "torch" not in sys.modules and "transformers" not in sys.modules
sys.exit(code)
"""


def test_a_recorded_result_is_answered_without_loading_torch(bench: Any, drift_request: DriftRequest) -> None:
    first = bench.run(drift_request)
    arguments = ["drift", "--request", str(bench.folder / "request.json"), "--store", str(bench.store.root)]
    log = ["--termination-log", str(bench.folder / "message")]
    subprocess.run([sys.executable, "-c", _RECORDED, *arguments, *log], check=True, capture_output=True)
    assert Summary.model_validate_json((bench.folder / "message").read_bytes()) == first.summary


def test_a_record_whose_artifact_is_gone_is_worked_out_again(bench: Any, drift_request: DriftRequest) -> None:
    digest = bench.run(drift_request).summary.drift.digest
    (bench.store.open(digest).path / "manifest.json").unlink()
    assert bench.run(drift_request).summary.drift.digest == digest
    bench.store.open(digest, verify=True)


def test_an_extract_passes_the_gate_and_keeps_its_evidence(
    bench: Any, extract_request: ExtractRequest, sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[float] = []
    monkeypatch.setattr(JsonLog, "progress", lambda _, done, doing: told.append(done))
    ended = bench.run(extract_request)
    assert ended.code == 0, ended.summary.message
    assert (told, told[-1]) == (sorted(told), 1.0)
    (outcome,) = ended.summary.outcomes
    assert (outcome.passed, outcome.reason, outcome.origin) == (True, "GatePassed", Origin.EXTRACTED)
    (rung,) = outcome.rungs
    assert rung.interval.lower > -0.05
    assert rung.reference == 1.0
    assert rung.score > 0.97

    assert 'id="energy"' in (bench.store.root / outcome.report).read_text()
    artifact = bench.store.open(outcome.variant, verify=True)
    assert {e.name for e in artifact.manifest.files} == {"adapter_config.json", "adapter_model.safetensors"}
    assert {e.name for e in artifact.manifest.attachments} == {"probe.json", "report.json"}
    assert (artifact.manifest.rank, artifact.manifest.base) == (8, extract_request.base)
    factors = load_file(artifact.path / "adapter_model.safetensors")
    old, new = (load_file(sources / name / "model.safetensors") for name in ("v1", "checkpoint"))
    for name in (n for n in old if "_proj" in n):
        a, b = (factors[f"base_model.model.{name.removesuffix('.weight')}.lora_{side}.weight"] for side in "AB")
        torch.testing.assert_close(b @ a, new[name] - old[name], rtol=1e-3, atol=1e-4)
    evidence = bench.store.root / "results" / f"{outcome.input_hash.removeprefix('sha256:')}.evidence.json"
    assert json.loads(evidence.read_text())["counts"]["wins"] >= 0

    renamed = extract_request.model_copy(update={"name": "another"})
    again = bench.run(renamed)
    assert again.summary.outcomes == (outcome.model_copy(update={"name": "another"}),)


def test_an_extract_that_loses_too_much_is_recorded_and_not_published(
    bench: Any, extract_request: ExtractRequest
) -> None:
    """One direction of one module is not what the checkpoint learned."""
    poor = extract_request.model_copy(update={"fixed_rank": 1, "max_rank": 1, "target_modules": ("k_proj",)})
    before = set(bench.store.root.glob("artifacts/*"))
    ended = bench.run(poor)
    (outcome,) = ended.summary.outcomes
    assert ended.code == 0
    assert (outcome.passed, outcome.variant) == (False, None)
    assert (outcome.rungs[0].verdict, outcome.reason) == (GateVerdict.FAILED, "GateFailed")
    assert outcome.rungs[0].reference == 1.0
    assert outcome.evidence is not None
    assert set(bench.store.root.glob("artifacts/*")) == before


@pytest.mark.parametrize(
    ("rank", "largest"), [({"relative_error": "0.2"}, 8), ({"budget": 20_000}, 8), ({"fixed_rank": 4}, 8)], ids=str
)
def test_an_extract_gets_the_rank_that_was_asked_for(
    bench: Any, extract_request: ExtractRequest, rank: dict[str, Any], largest: int
) -> None:
    """All policies reach the factors; what they come to is tested in ``extract``."""
    given = {"fixed_rank": None, "energy": None, "data": None, "gate": GateSettings(mode=GateMode.SKIP)} | rank
    ended = bench.run(extract_request.model_copy(update=given))
    assert ended.code == 0, ended.summary.message
    artifact = bench.store.open(ended.summary.outcomes[0].variant)
    report = json.loads((artifact.path / "report.json").read_text())
    policy = {key.replace("fixed_rank", "fixed"): float(value) for key, value in rank.items()}
    assert report["policy"] == {**policy, "max_rank": 64}
    assert artifact.manifest.rank == report["rank"] == largest
    assert report["parameters"] <= rank.get("budget", 1 << 40)


def test_an_extract_of_weights_that_are_no_numbers_publishes_nothing(
    bench: Any, extract_request: ExtractRequest, sources: Path, tmp_path: Path
) -> None:
    """``fetch`` would have refused them; what was put into the store by other ways is refused here."""
    folder = Path(shutil.copytree(sources / "checkpoint", tmp_path / "broken"))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][5, 7] = torch.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    broken = bench.store.publish(ArtifactKind.CHECKPOINT, folder).digest
    before = set(bench.store.root.glob("artifacts/*"))
    skip = {"checkpoint": broken, "data": None, "gate": GateSettings(mode=GateMode.SKIP)}
    ended = bench.run(extract_request.model_copy(update=skip))
    assert (ended.code, ended.summary.reason) == (64, "BadWeights")
    assert "model.layers.1.mlp.down_proj.weight: NaN or infinite values" in ended.summary.message
    assert set(bench.store.root.glob("artifacts/*")) == before


def test_an_extract_without_data_says_what_is_missing(bench: Any, extract_request: ExtractRequest) -> None:
    ended = bench.run(extract_request.model_copy(update={"data": None}))
    assert (ended.code, ended.summary.reason) == (64, "GateNeedsData")


def test_an_extract_whose_gate_is_skipped_needs_no_data(bench: Any, extract_request: ExtractRequest) -> None:
    skipped = extract_request.model_copy(update={"data": None, "gate": GateSettings(mode=GateMode.SKIP)})
    (outcome,) = bench.run(skipped).summary.outcomes
    assert (outcome.passed, outcome.reason, outcome.rungs) == (True, "GateSkipped", ())
    artifact = bench.store.open(outcome.variant, verify=True)
    assert {e.name for e in artifact.manifest.attachments} == {"probe.json", "report.json"}


@pytest.mark.parametrize("metric", [Metric.AGREEMENT, Metric.TOKEN_LOSS])
def test_an_extract_is_gated_by_any_metric(bench: Any, extract_request: ExtractRequest, metric: Metric) -> None:
    gate = GateSettings(metric=metric, max_regression="0.5", confidence="0.9")
    (outcome,) = bench.run(extract_request.model_copy(update={"gate": gate})).summary.outcomes
    assert (outcome.passed, outcome.reason) == (True, "GatePassed"), outcome.message
    assert outcome.rungs[0].metric is metric
    assert f"; {metric} " in outcome.message


def test_an_artifact_that_is_not_there_yet_is_tried_again(bench: Any) -> None:
    ended = bench.run(DriftRequest(old_base=DIGEST, new_base=DIGEST))
    assert (ended.code, ended.summary.reason) == (75, "MissingArtifact")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "Invalid JSON"),
        ('{"kind": "drift"}', "oldBase"),
        ('{"kind": "sing"}', "kind"),
        (json.dumps({"kind": "drift", "oldBase": DIGEST, "newBase": DIGEST, "more": 1}), "more"),
        (
            json.dumps({"kind": "fetch", "role": "Base", "sources": [{"uri": "pvc://a/b", "path": "/b"}]}),
            "of kind fetch, not drift",
        ),
    ],
    ids=["no JSON", "missing field", "unknown kind", "unknown field", "another kind"],
)
def test_a_bad_request_is_bad_input(tmp_path: Path, document: str, message: str) -> None:
    (tmp_path / "request.json").write_text(document)
    log = tmp_path / "message"
    code = run(["drift", "--request", str(tmp_path / "request.json"), "--store", str(tmp_path), *_to(log)])
    summary = Summary.model_validate_json(log.read_bytes())
    assert (code, summary.ok, summary.reason) == (64, False, "BadRequest")
    assert message in summary.message


def _to(path: Path) -> list[str]:
    return ["--termination-log", str(path)]


def test_a_bug_is_logged_with_its_traceback_and_crashes(
    bench: Any, drift_request: DriftRequest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("seven")

    monkeypatch.setattr("readapt_runtime.directions.decompose_all", broken)
    ended = bench.run(drift_request)
    assert (ended.code, ended.summary.reason, ended.summary.message) == (70, "ZeroDivisionError", "seven")
    line = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert (line["level"], line["event"]) == ("error", "bug")
    assert "Traceback" in line["traceback"]


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError], ids=["machine", "GPU"])
def test_memory_that_runs_out_is_a_shortage(
    bench: Any, drift_request: DriftRequest, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise error("tried to allocate 12 GiB")

    monkeypatch.setattr("readapt_runtime.directions.decompose_all", broken)
    ended = bench.run(drift_request)
    told = "not enough memory: tried to allocate 12 GiB"
    assert (ended.code, ended.summary.reason, ended.summary.message) == (75, "OutOfMemory", told)


def test_a_missing_termination_log_does_not_fail_the_job(
    bench: Any, drift_request: DriftRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.run(drift_request)
    capsys.readouterr()
    arguments = ["drift", "--request", str(bench.folder / "request.json"), "--store", str(bench.store.root)]
    assert run([*arguments, *_to(bench.folder / "no" / "such")]) == 0
    assert Summary.model_validate_json(capsys.readouterr().out).ok


_STOPPED = """
import os, signal, sys
import readapt_runtime.directions as module
from readapt_runtime.jobs.main import run

decompose, left = module.decompose_all, 3
def then_stop(*args, **kwargs):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    return decompose(*args, **kwargs)
module.decompose_all = then_stop
sys.exit(run(sys.argv[2:]))
"""


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 75), ("SIGKILL", -signal.SIGKILL)])
def test_a_stopped_job_leaves_no_artifact_and_the_next_one_the_same_digest(
    bench: Any, drift_request: DriftRequest, tmp_path: Path, name: str, code: int
) -> None:
    (bench.folder / "request.json").write_text(json.dumps(drift_request.to_wire()))
    before = set(bench.store.root.glob("artifacts/*"))
    arguments = [
        "drift",
        "--request",
        str(bench.folder / "request.json"),
        "--store",
        str(bench.store.root),
    ]
    message = tmp_path / "stopped"
    command = [sys.executable, "-c", _STOPPED, name, *arguments, *_to(message)]
    assert subprocess.run(command, check=False, capture_output=True).returncode == code
    assert set(bench.store.root.glob("artifacts/*")) == before
    if name == "SIGTERM":
        assert Summary.model_validate_json(message.read_bytes()).reason == "Terminated"

    first = bench.run(drift_request).summary.drift.digest
    undisturbed = type(bench)(tmp_path, bench.store)
    (bench.store.root / "results" / f"{drift_request.input_hash.removeprefix('sha256:')}.json").unlink()
    assert undisturbed.run(drift_request).summary.drift.digest == first


def outcome(name: str, rungs: int, message: str) -> Outcome:
    rung = RungResult(
        origin=Origin.RELORA,
        verdict=GateVerdict.PASSED,
        score=0.9,
        reference=0.91,
        interval=Interval(lower=-0.02, upper=0.02),
        samples=3000,
        seconds=12.5,
        message=message[:300],
    )
    return Outcome(
        name=name,
        input_hash=DIGEST,
        passed=True,
        variant=DIGEST,
        origin=Origin.RELORA,
        rank=8,
        rungs=(rung,) * rungs,
        reason="GatePassed",
        message=message[:500],
        evidence=DIGEST,
    )


@pytest.mark.parametrize(("items", "rungs", "kept"), [(1, 2, 1), (3, 3, 3), (8, 4, 8), (64, 4, None)])
@pytest.mark.parametrize("text", ["short", "ü" * 500], ids=["ascii", "two-byte letters"])
def test_the_termination_message_always_fits(items: int, rungs: int, kept: int | None, text: str) -> None:
    summary = Summary(kind=JobKind.ADAPT, ok=True, outcomes=tuple(outcome(f"a{i}", rungs, text) for i in range(items)))
    encoded = to_bytes(summary)
    assert len(encoded) <= 4096
    read = Summary.model_validate_json(encoded)
    assert read.outcomes
    assert all(o.variant == DIGEST and o.passed for o in read.outcomes)
    assert len(read.outcomes) == kept or (kept is None and "left out" in read.message)


@pytest.mark.parametrize(("items", "kept"), [(1, [0, 1, 2, 3, 4]), (3, [0, 4]), (4, [4])])
def test_as_many_adapters_as_share_a_job_are_told_with_what_decided(items: int, kept: list[int]) -> None:
    """The longest that there is of every field; up to three adapters are also told what Copy came to."""
    longest: dict[str, object] = {
        **dict.fromkeys(("score", "reference", "retention", "retention_floor"), 1 / 3),
        "interval": Interval(lower=-1 / 3, upper=2 / 3),
        "seconds": 1e4 / 3,
        "samples_left": 2250,
        "samples_needed": 99999,
    }
    full = outcome("a" * 40, 1, "ü" * 500)
    rungs = [full.rungs[0].model_copy(update=longest | {"origin": origin}) for origin in ladder.RUNGS[Policy.AUTO]]
    report = f"results/{'a' * 64}.report.html"
    full = full.model_copy(update={"rungs": tuple(rungs), "report": report, "repair_seconds": 1e4 / 3})
    read = Summary.model_validate_json(to_bytes(Summary(kind=JobKind.ADAPT, ok=True, outcomes=(full,) * items)))
    assert len(read.outcomes) == items
    for told in read.outcomes:
        assert [rung.origin for rung in told.rungs] == [rungs[n].origin for n in kept]


def test_a_failure_with_a_long_text_fits() -> None:
    encoded = to_bytes(failure(JobKind.FETCH, ValueError("漢" * 5000)))
    assert len(encoded) <= 4096
    assert Summary.model_validate_json(encoded).reason == "ValueError"


def test_recorded_items_answer_a_whole_adapt_request(bench: Any) -> None:
    items = tuple(AdaptItem(name=name, reference=DIGEST, data=data) for name, data in (("a", DIGEST), ("b", DIGEST)))
    request = AdaptRequest(old_base=DIGEST, new_base=DIGEST, drift=DIGEST, items=items)
    stuck = Outcome(name="x", input_hash=request.item_hash(items[0]), passed=False, reason="GateFailed")
    bench.store.write_result(stuck.input_hash, stuck)
    bench.store.write_progress(stuck.input_hash, "json", b"left between the record and the end of the Job")
    ended = bench.run(request)
    assert list((bench.store.root / "progress").iterdir()) == []
    assert [o.name for o in ended.summary.outcomes] == ["a", "b"]
    assert (ended.code, ended.summary.outcomes[0].reason) == (0, "GateFailed")


@pytest.mark.parametrize("words", [[], ["bogus", "--request", "r.json"], ["fetch"]], ids=["none", "kind", "no request"])
def test_a_wrong_command_line_is_bad_input(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words) == 64
    assert "usage: readapt-job" in capsys.readouterr().err
