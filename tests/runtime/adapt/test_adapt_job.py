"""The adapt Job on a real base move: Copy fails, ReLoRA passes, and equal Jobs leave equal bytes."""

from __future__ import annotations

import html
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from readapt_api.adaptation import GateMode, Metric, Policy
from readapt_api.artifacts import PROBE, ArtifactKind, FactorBlock, Origin, Probe
from readapt_api.contract import Digest
from readapt_api.digest import hex_of
from readapt_api.jobs import (
    AdaptationSettings,
    AdaptItem,
    AdaptRequest,
    DriftRequest,
    GateSettings,
    GateVerdict,
    Outcome,
)
from readapt_runtime.adapt.comparison import AnswerStream, Pair
from readapt_runtime.adapt.errors import Diverged
from readapt_runtime.adapt.measure import Measure, mean
from readapt_runtime.adapt.relora import Relora
from readapt_runtime.adapt.training import Training
from readapt_runtime.adapt.transported import Transport
from readapt_runtime.adapt.tuning import Tuning
from readapt_runtime.examples import BadData
from readapt_runtime.jobs.adapt import WrongBase, run
from readapt_runtime.jobs.drift import run as measure_drift
from readapt_runtime.lora_format import linear_shapes, read_adapter
from readapt_runtime.progress import JsonLog
from readapt_runtime.store import Store
from readapt_testing.tiny_llama import Oracle

SETTINGS = AdaptationSettings(policy=Policy.RELORA, trials=5, max_steps=90, learning_rate="2e-3", batch_size=16)
AUTO = SETTINGS.model_copy(update={"policy": Policy.AUTO})
TUNING = Tuning(max_steps=90, learning_rate=2e-3, batch_size=16, seed=0)
GATE = GateSettings(max_samples=900)


@dataclass(frozen=True)
class Published:
    """A store with everything that an adapt request names."""

    store: Store
    request: AdaptRequest

    def asking(self, **changes: object) -> AdaptRequest:
        item = self.request.items[0].model_copy(update=changes)
        return self.request.model_copy(update={"items": (item,)})


def publish(world: Any, root: Path, data: Path | None = None) -> Published:
    store = Store(root)
    old, new = (store.publish(ArtifactKind.BASE, world.folder / name).digest for name in ("v1", "v2"))
    variant = store.publish(
        ArtifactKind.VARIANT, world.folder / "adapter", base=old, rank=8, blocks=(FactorBlock(),)
    ).digest
    drift = measure_drift(DriftRequest(old_base=old, new_base=new), store, JsonLog(io.StringIO())).digest
    files = store.publish(ArtifactKind.DATA, data or world.folder / "data").digest
    item = AdaptItem(name="topics", reference=variant, data=files, adaptation=SETTINGS, gate=GATE)
    return Published(store, AdaptRequest(old_base=old, new_base=new, drift=drift, items=(item,)))


@pytest.fixture(scope="module")
def published(world: Any, tmp_path_factory: pytest.TempPathFactory) -> Published:
    return publish(world, tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def log() -> io.StringIO:
    return io.StringIO()


@pytest.fixture(scope="module")
def outcome(published: Published, log: io.StringIO) -> Outcome:
    return run(published.request, published.store, JsonLog(log))[0]


def variant_of(outcome: Outcome) -> Digest:
    assert outcome.variant is not None
    return outcome.variant


def test_copy_fails_and_transport_passes_without_a_step_of_training(published: Published) -> None:
    found = run(published.asking(adaptation=AUTO), published.store, JsonLog(io.StringIO()))[0]
    copied, transported = found.rungs
    assert copied.origin is Origin.COPIED
    assert copied.verdict in (GateVerdict.FAILED, GateVerdict.UNDECIDED), copied.message
    assert (transported.origin, transported.verdict) == (Origin.TRANSPORTED, GateVerdict.PASSED), transported.message
    assert copied.score < copied.reference - 0.04
    assert transported.interval.lower > -0.03
    evidence = evidence_of(published, found)
    assert "tuning" not in evidence["seconds"]
    assert evidence["transported"]["prompts"] == 64


def test_an_exam_without_hope_ends_early_where_another_rung_waits(
    world: Any, published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, gate = io.StringIO(), GATE.model_copy(update={"max_regression": f"{lost_by_copy(world):.3f}"})
    with monkeypatch.context() as patched:
        patched.setattr(Transport, "run", before(Transport.run, dying(at=1)))
        with pytest.raises(Killed):
            run(published.asking(adaptation=AUTO, gate=gate), published.store, JsonLog(said))
    (copied,) = facts(said, "rung")
    assert copied["verdict"] == "Undecided"
    assert "of 900: the others would hardly make it pass" in copied["message"]
    alone = published.asking(adaptation=SETTINGS.model_copy(update={"policy": Policy.COPY}), gate=gate)
    (whole,) = run(alone, published.store, JsonLog(io.StringIO()))[0].rungs
    assert (whole.verdict, whole.samples, whole.samples_left) == (GateVerdict.UNDECIDED, 900, None), whole.message


def lost_by_copy(world: Any) -> float:
    """Accuracy on all examples of the gate."""
    examples, measure = world.splits.gate[:900], Measure.of(Metric.ACCURACY, world.splits, world.old)
    pairs = Pair(world.old, world.adapter), Pair(world.new, world.adapter)
    old, new = (AnswerStream(pair, examples, measure.form).all() for pair in pairs)
    return mean(measure.scores(examples, old, old)) - mean(measure.scores(examples, new, old))


def test_relora_passes(outcome: Outcome) -> None:
    (relora,) = outcome.rungs
    assert (relora.origin, relora.verdict) == (Origin.RELORA, GateVerdict.PASSED)
    assert relora.interval.lower > -0.03
    assert outcome.passed
    assert outcome.reason == "GatePassed"
    assert outcome.repair_seconds > relora.seconds


def test_the_update_survives_the_repair(outcome: Outcome) -> None:
    last = outcome.rungs[-1]
    assert last.retention is not None
    assert last.retention_floor is None or last.retention >= last.retention_floor


def test_the_variant_is_an_ordinary_peft_adapter(world: Any, published: Published, outcome: Outcome) -> None:
    artifact = published.store.open(variant_of(outcome), verify=True)
    manifest = artifact.manifest
    assert (manifest.kind, manifest.base, manifest.rank) == (ArtifactKind.VARIANT, published.request.new_base, 8)
    assert manifest.provenance is not None
    assert manifest.provenance.origin is Origin.RELORA
    assert manifest.provenance.source == published.request.items[0].reference
    assert [entry.name for entry in manifest.attachments] == [PROBE]
    assert Probe.model_validate_json((artifact.path / PROBE).read_bytes()).prompts
    examples = world.splits.gate[:200]
    model, tokenizer = Oracle(world.folder / "v2").model(artifact.path), world.new.tokenizer
    labels = {c: tokenizer(c).input_ids[0] for c in world.splits.choices}
    right = 0
    for example in examples:
        logits = model(input_ids=tokenizer(example.prompt, return_tensors="pt").input_ids).logits[0, -1]
        right += max(labels, key=lambda c: float(logits[labels[c]])) == example.completion
    assert right / len(examples) == pytest.approx(outcome.rungs[-1].score, abs=0.06)


def test_evidence_and_result_are_in_the_store(published: Published, outcome: Outcome) -> None:
    assert published.store.read_result(outcome.input_hash, Outcome) == outcome
    evidence = evidence_of(published, outcome)
    assert evidence["request"]["newBase"] == published.request.new_base
    assert evidence["threads"] >= 1
    assert evidence["versions"].keys() == {"torch", "transformers", "peft", "optuna"}
    assert {"size", "read", "written", "along"} <= evidence["forecast"].keys()
    trials = evidence["relora"]["trials"]
    assert len(trials) == SETTINGS.trials
    assert (trials[0]["alpha"], trials[0]["beta"]) == (1.0, 0.0)
    assert {"search", "gate ReLoRA", "yardstick"} <= evidence["seconds"].keys()
    assert sum(evidence["examples"][part] for part in ("search", "stopping")) <= 400


def test_the_outcome_names_a_page_that_shows_its_rungs_and_trials(published: Published, outcome: Outcome) -> None:
    page = (published.store.root / str(outcome.report)).read_text()
    assert f"Passed as ReLoRA. {outcome.message}." in html.unescape(page)
    assert all(f'id="{name}"' in page for name in ("gate", "search-1", "learning-1", "trials", "seconds"))
    assert str(outcome.variant) in page


def test_progress_is_json_lines_that_only_grow(outcome: Outcome, log: io.StringIO) -> None:
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    percents = [line["percent"] for line in lines if line["event"] == "progress"]
    assert percents == sorted(percents)
    assert percents[-1] == 100


class Killed(BaseException):
    """The process ends here."""


def dying(*, at: int) -> Callable[..., None]:
    """Ends the process at its ``at``-th call."""
    left = at

    def call(*_: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed

    return call


def before(method: Callable[..., Any], act: Callable[..., None]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        act(*arguments)
        return method(*arguments)

    return call


DEATHS = ((Relora, "_measure", 3), (Training, "step", 25), (Training, "step", 20), (Store, "write_evidence", 1))
"""In the search, in the tuning before and after its first checkpoint, between the variant and its result."""


@pytest.mark.fault
def test_an_equal_job_elsewhere_that_dies_four_times_makes_the_same_variant_and_keeps_what_it_did(
    world: Any, tmp_path: Path, published: Published, outcome: Outcome, log: io.StringIO, monkeypatch: Any
) -> None:
    elsewhere, said, steps = publish(world, tmp_path), io.StringIO(), 0

    def count(*_: object) -> None:
        nonlocal steps
        steps += 1

    monkeypatch.setattr(Training, "step", before(Training.step, count))
    for owner, name, at in DEATHS:
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, before(getattr(owner, name), dying(at=at)))
            with pytest.raises(Killed):
                run(elsewhere.request, elsewhere.store, JsonLog(said))
    found = run(elsewhere.request, elsewhere.store, JsonLog(said))[0]
    assert found.variant == outcome.variant
    assert list((elsewhere.store.root / "progress").iterdir()) == []
    for event in ("trial", "checkpoint"):
        assert facts(said, event) == facts(log, event)
    taken, first = len(evidence_of(published, outcome)["relora"]["trainLosses"]), saved(24)
    assert taken <= steps <= taken + (24 - first) + (first + 19 - saved(first + 19))


@pytest.mark.fault
@pytest.mark.parametrize(("death", "every", "code"), [("SIGKILL", 1, -9), ("SIGTERM", 4, 75), ("full", 4, 75)])
def test_stopped_before_any_durable_write_the_next_run_makes_the_same_variant_and_repeats_no_recorded_work(
    world: Any, tmp_path: Path, death: str, every: int, code: int
) -> None:
    elsewhere = publish(world, tmp_path / "store")
    request = elsewhere.asking(adaptation=SETTINGS.model_copy(update={"trials": 4}))
    (tmp_path / "request.json").write_text(json.dumps(request.to_wire()))
    command = [sys.executable, "-m", "readapt_testing.mortal_job", death, str(every), elsewhere.store.root]
    told = subprocess.run([*command, tmp_path / "request.json", tmp_path], check=True, capture_output=True).stdout
    undisturbed, lives = json.loads(told).values()
    names, looks = undisturbed["renames"], [0, *filter(TUNING.evaluates, range(1, SETTINGS.max_steps + 1))]
    between = max(after - before for before, after in pairwise(looks))
    assert {name.partition("/")[0] for name in names} == {"artifacts", "progress", "results"}
    assert undisturbed["steps"] > between
    for life in lives:
        stopped, again, at = life["stopped"], life["again"], life["at"]
        assert (stopped["code"], again["code"]) == (code, 0), life
        assert stopped["renames"] == names[: at + 1]
        assert again["summary"]["outcomes"][0]["variant"] == undisturbed["summary"]["outcomes"][0]["variant"], life
        assert [name for name in again["leftovers"] if name.startswith("progress/")] == []
        assert death == "SIGKILL" or not [name for name in stopped["leftovers"] if name.startswith("tmp/")]
        done = [sum(e["event"] == "trial" for e in run["events"]) for run in (stopped, again, undisturbed)]
        assert done[0] + done[1] <= done[2] + 1, "only the trial whose record was being written is measured again"
        assert stopped["steps"] + again["steps"] <= undisturbed["steps"] + between, life


@pytest.mark.fault
@pytest.mark.parametrize(("death", "code"), [("SIGKILL", -9), ("SIGTERM", 75)])
@pytest.mark.parametrize(
    ("policy", "origin", "every"),
    [
        (Policy.AUTO, Origin.TRANSPORTED, 4),
        (Policy.REFRESH, Origin.REFRESHED, 7),
        (Policy.RETRAIN, Origin.RETRAINED, 9),
    ],
)
def test_stopped_on_another_rung_the_next_run_makes_the_same_variant(
    world: Any, tmp_path: Path, policy: Policy, origin: Origin, every: int, death: str, code: int
) -> None:
    elsewhere = publish(world, tmp_path / "store")
    settings = SETTINGS.model_copy(update={"policy": policy, "trials": 4, "max_steps": 20, "learning_rate": "1e-2"})
    regression = "0.1" if policy is Policy.AUTO else "0.9"
    request = elsewhere.asking(adaptation=settings, gate=GateSettings(max_samples=300, max_regression=regression))
    (tmp_path / "request.json").write_text(json.dumps(request.to_wire()))
    command = [sys.executable, "-m", "readapt_testing.mortal_job", death, str(every), elsewhere.store.root]
    told = subprocess.run([*command, tmp_path / "request.json", tmp_path], check=True, capture_output=True).stdout
    undisturbed, lives = json.loads(told).values()
    assert undisturbed["summary"]["outcomes"][0]["origin"] == origin, undisturbed
    names, tuning = undisturbed["renames"], replace(TUNING, max_steps=settings.max_steps)
    looks = [0, *filter(tuning.evaluates, range(1, settings.max_steps + 1))]
    between = max(after - before for before, after in pairwise(looks))
    rates = {name for name in names if ".tuning-" in name}
    assert len(rates) >= {Policy.AUTO: 0, Policy.REFRESH: 1, Policy.RETRAIN: 2}[policy]
    for life in lives:
        stopped, again, at = life["stopped"], life["again"], life["at"]
        assert (stopped["code"], again["code"]) == (code, 0), life
        assert stopped["renames"] == names[: at + 1]
        assert again["summary"]["outcomes"][0]["variant"] == undisturbed["summary"]["outcomes"][0]["variant"], life
        assert [name for name in again["leftovers"] if name.startswith("progress/")] == []
        assert stopped["steps"] + again["steps"] <= undisturbed["steps"] + between, life


def saved(step: int) -> int:
    """The last checkpoint at or before ``step``."""
    return max(s for s in range(step + 1) if s == 0 or TUNING.evaluates(s))


def facts(log: io.StringIO, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    return [{k: v for k, v in line.items() if k != "time"} for line in lines if line["event"] == event]


def evidence_of(published: Published, outcome: Outcome) -> Any:
    path = published.store.root / "results" / f"{hex_of(outcome.input_hash)}.evidence.json"
    return json.loads(path.read_bytes())


def test_a_finished_job_answers_from_its_record(published: Published, outcome: Outcome) -> None:
    renamed = published.asking(name="other")
    found = run(renamed, published.store, JsonLog(io.StringIO()))
    assert found == (outcome.model_copy(update={"name": "other"}),)


def test_an_exhausted_ladder_is_a_result_with_evidence_and_no_variant(published: Published, outcome: Outcome) -> None:
    request = published.asking(adaptation=SETTINGS.model_copy(update={"policy": Policy.COPY}))
    failed = run(request, published.store, JsonLog(io.StringIO()))[0]
    assert not failed.passed
    assert failed.variant is None
    assert failed.origin is None
    assert failed.reason == "GateFailed"
    assert failed.evidence is not None
    assert [r.origin for r in failed.rungs] == [Origin.COPIED]


def test_copy_passes_where_nothing_moved_and_keeps_the_factors_bit_for_bit(world: Any, published: Published) -> None:
    store, old = published.store, published.request.old_base
    drift = measure_drift(DriftRequest(old_base=old, new_base=old), store, JsonLog(io.StringIO())).digest
    request = published.asking(adaptation=AUTO).model_copy(update={"new_base": old, "drift": drift})
    copied = run(request, store, JsonLog(io.StringIO()))[0]
    assert (copied.passed, copied.origin) == (True, Origin.COPIED)
    assert copied.rungs[0].retention is None
    shapes = linear_shapes(world.old.model.config.to_dict())
    ours = read_adapter(store.open(variant_of(copied)).path, shapes)
    for name, module in world.adapter.modules.items():
        assert ours.modules[name].a.equal(module.a)
        assert ours.modules[name].b.equal(module.b)


def test_a_variant_of_another_base_is_refused(published: Published) -> None:
    swapped = published.request.model_copy(update={"old_base": published.request.new_base})
    with pytest.raises(WrongBase, match="topics"):
        run(swapped, published.store, JsonLog(io.StringIO()))


def test_a_learning_rate_that_diverges_is_terminal(published: Published) -> None:
    wild = SETTINGS.model_copy(update={"policy": Policy.RELORA, "trials": 4, "learning_rate": "1e30", "max_steps": 30})
    with pytest.raises(Diverged, match="learningRate"):
        run(published.asking(adaptation=wild), published.store, JsonLog(io.StringIO()))


def test_a_skipped_gate_copies_without_data_and_says_so(world: Any, published: Published) -> None:
    skipped = published.asking(data=None, gate=GateSettings(mode=GateMode.SKIP))
    copied = run(skipped, published.store, JsonLog(io.StringIO()))[0]
    assert (copied.passed, copied.origin, copied.reason, copied.rungs) == (True, Origin.COPIED, "GateSkipped", ())
    artifact = published.store.open(variant_of(copied), verify=True)
    assert (artifact.manifest.base, artifact.manifest.rank) == (published.request.new_base, 8)
    assert Probe.model_validate_json((artifact.path / PROBE).read_bytes()).prompts
    ours = read_adapter(artifact.path, linear_shapes(world.new.model.config.to_dict()))
    assert all(ours.modules[name].b.equal(module.b) for name, module in world.adapter.modules.items())
    assert run(skipped, published.store, JsonLog(io.StringIO())) == (copied,)


@pytest.fixture(scope="module")
def unlabelled(world: Any, tmp_path_factory: pytest.TempPathFactory) -> Published:
    """The same move with prompts alone."""
    data = tmp_path_factory.mktemp("inputs")
    texts = [(world.folder / "data" / f"{name}.jsonl").read_text() for name in ("train", "test")]
    prompts = [{"prompt": json.loads(line)["prompt"]} for text in texts for line in text.splitlines()]
    (data / "inputs.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    return publish(world, tmp_path_factory.mktemp("store-of-inputs"), data)


@pytest.mark.fault
def test_refresh_learns_from_the_old_pair_without_labels(unlabelled: Published) -> None:
    gate = GateSettings(metric=Metric.AGREEMENT, max_regression="0.1", max_samples=800)
    settings = SETTINGS.model_copy(update={"policy": Policy.REFRESH})
    outcome = run(unlabelled.asking(adaptation=settings, gate=gate), unlabelled.store, JsonLog(io.StringIO()))[0]
    (refreshed,) = outcome.rungs
    assert (refreshed.origin, refreshed.verdict) == (Origin.REFRESHED, GateVerdict.PASSED)
    assert (refreshed.metric, refreshed.reference) == (Metric.AGREEMENT, 1.0)
    assert refreshed.retention_floor is None or (refreshed.retention or 0) >= refreshed.retention_floor
    assert outcome.reason == "GatePassed"
    manifest = unlabelled.store.open(variant_of(outcome)).manifest
    assert manifest.provenance is not None
    assert manifest.provenance.origin is Origin.REFRESHED
    assert manifest.provenance.parameters["start"] in ("Copied", "ReLoRA")


def test_transport_works_without_labels(unlabelled: Published) -> None:
    gate = GateSettings(metric=Metric.AGREEMENT, max_regression="0.1", max_samples=800)
    found = run(unlabelled.asking(adaptation=AUTO, gate=gate), unlabelled.store, JsonLog(io.StringIO()))[0]
    copied, transported = found.rungs[:2]
    assert copied.origin is Origin.COPIED
    assert copied.verdict is not GateVerdict.PASSED
    assert transported.origin is Origin.TRANSPORTED
    assert transported.score > copied.score + 0.05


def test_metrics_that_need_labels_are_refused_without(unlabelled: Published) -> None:
    before = set(unlabelled.store.root.glob("artifacts/*"))
    with pytest.raises(BadData, match="Accuracy needs train and validation"):
        run(unlabelled.asking(adaptation=AUTO), unlabelled.store, JsonLog(io.StringIO()))
    assert set(unlabelled.store.root.glob("artifacts/*")) == before


@pytest.mark.fault
def test_retrain_starts_from_scratch_and_chooses_its_learning_rate(world: Any, published: Published) -> None:
    settings = SETTINGS.model_copy(update={"policy": Policy.RETRAIN, "learning_rate": "1e-2", "max_steps": 40})
    request = published.asking(adaptation=settings, gate=GATE.model_copy(update={"max_regression": "0.6"}))
    outcome = run(request, published.store, JsonLog(io.StringIO()))[0]
    (rung,) = outcome.rungs
    assert (rung.origin, rung.verdict) == (Origin.RETRAINED, GateVerdict.PASSED), rung.message
    runs = evidence_of(published, outcome)["retrained"]["runs"]
    assert [each["learningRate"] for each in runs] == pytest.approx([4e-2, 1e-2, 1.6e-1])
    assert all(each["curve"][0]["score"] < 0.3 for each in runs), "from scratch"
    best = max(runs, key=lambda each: max((c["score"] for c in each["curve"] if c["feasible"]), default=0.0))
    assert evidence_of(published, outcome)["retrained"]["learningRate"] == best["learningRate"]


def test_a_prompt_longer_than_the_model_is_terminal_and_publishes_nothing(world: Any, tmp_path: Path) -> None:
    data = Path(shutil.copytree(world.folder / "data", tmp_path / "data"))
    with (data / "train.jsonl").open("a") as stream:
        stream.write(json.dumps({"prompt": "g1 " * 300, "completion": " label1"}) + "\n")
    long = publish(world, tmp_path / "store", data)
    before = set(long.store.root.glob("artifacts/*"))
    with pytest.raises(BadData, match="301 tokens and an end does not fit the base, which reads 256"):
        run(long.request, long.store, JsonLog(io.StringIO()))
    assert set(long.store.root.glob("artifacts/*")) == before


def test_too_little_data_is_terminal(world: Any, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name, lines in (("train", 100), ("validation", 4), ("test", 50)):
        text = (world.folder / "data" / f"{name}.jsonl").read_text().splitlines(keepends=True)
        (data / f"{name}.jsonl").write_text("".join(text[:lines]))
    small = publish(world, tmp_path / "store", data)
    with pytest.raises(BadData, match="1 examples are left for search, at least 8 are needed"):
        run(small.request, small.store, JsonLog(io.StringIO()))
