"""The Jobs train and learn, and their commands: what they leave, and that nothing is learned twice."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest
import torch

from readapt_api.artifacts import MAGNITUDES, PROBE, ArtifactKind, Origin
from readapt_api.contract import Digest
from readapt_api.digest import hex_of
from readapt_api.jobs import GateVerdict, LearnRequest, LearnTask, Outcome, TrainRequest
from readapt_runtime.adapt.data import Example, Splits, read_examples, read_splits
from readapt_runtime.cli import run as readapt
from readapt_runtime.continual import sequence
from readapt_runtime.continual.files import read_learned
from readapt_runtime.jobs import learn, train
from readapt_runtime.jobs.learn import Prefix
from readapt_runtime.lora_format import Shape, read_adapter
from readapt_runtime.progress import JsonLog
from readapt_runtime.store import Store
from readapt_runtime.training.training import NothingLearned
from readapt_testing.tiny_language import tokenizer
from readapt_testing.tiny_llama import Oracle
from readapt_testing.tiny_models import TinyModels

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
LABELS = {"low": range(4), "middle": range(4, 6), "high": range(6, 8)}
SETTINGS = {"rank": 4, "max_steps": 30, "learning_rate": "4e-3", "batch_size": 16}


def write(path: Path, examples: Iterable[Example]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"prompt": e.prompt, "completion": e.completion}) + "\n" for e in examples))


@pytest.fixture(scope="module")
def folders(
    models: TinyModels, task_splits: Callable[[range], Splits], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """NAME/train.jsonl, validation.jsonl and test.jsonl of every task, and of all together."""
    root = tmp_path_factory.mktemp("tasks")
    for name, labels in {**LABELS, "all": range(8)}.items():
        splits = task_splits(labels)
        write(root / name / "train.jsonl", splits.train)
        write(root / name / "validation.jsonl", (*splits.search, *splits.stopping))
        write(root / name / "test.jsonl", splits.gate[:40])
    return root


@pytest.fixture(scope="module")
def make_request(
    models: TinyModels, folders: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Store, LearnRequest]]:
    """A store of its own with the base and the data, and a request for these tasks."""

    def make(*names: str, store: Store | None = None, **changes: object) -> tuple[Store, LearnRequest]:
        store = store or Store(tmp_path_factory.mktemp("store"))
        base = store.publish(ArtifactKind.BASE, models.v1).digest
        tasks = tuple(
            LearnTask(name=n, data=store.publish(ArtifactKind.DATA, folders / n).digest, **SETTINGS) for n in names
        )
        return store, LearnRequest(name="topics", base=base, tasks=tasks, max_rank=32).model_copy(update=changes)

    return make


@pytest.fixture
def learned_tasks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the tasks that are really learned, one after the other."""
    names: list[str] = []
    inner = sequence.descend

    def count(pupil: sequence.Pupil, *rest: object) -> object:
        names.append("task")
        return inner(pupil, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(sequence, "descend", count)
    return names


def quiet() -> JsonLog:
    return JsonLog(io.StringIO())


def variant_of(outcome: Outcome) -> Digest:
    assert outcome.variant is not None
    return outcome.variant


@pytest.fixture(scope="module")
def two(make_request: Callable[..., tuple[Store, LearnRequest]]) -> tuple[Store, LearnRequest, Outcome]:
    store, request = make_request("low", "middle")
    return store, request, learn.run(request, store, quiet())


def test_the_variant_is_a_peft_adapter_with_its_blocks_beside_it(
    two: tuple[Store, LearnRequest, Outcome], shapes: dict[str, Shape]
) -> None:
    store, request, outcome = two
    artifact = store.open(variant_of(outcome), verify=True)
    manifest = artifact.manifest
    assert [(b.weights, b.scales, b.task) for b in manifest.blocks] == [
        ("block-000.safetensors", MAGNITUDES, "low"),
        ("block-001.safetensors", MAGNITUDES, "middle"),
    ]
    assert manifest.provenance is not None
    assert (manifest.provenance.origin, manifest.base) == (Origin.INCREMENTAL, request.base)
    assert {e.name for e in manifest.files} >= {"block-000.safetensors", "block-001.safetensors", MAGNITUDES}
    assert [e.name for e in manifest.attachments] == [PROBE]
    served, blocks = read_adapter(artifact.path, shapes), read_learned(artifact.path)
    assert served.rank == outcome.rank == max(blocks.update(m).rank for m in blocks.modules)
    for name, module in served.modules.items():
        whole = sum(
            b.magnitudes[name] * (b.directions[name].left.double() @ b.directions[name].right.double())
            for b in blocks.holding(name)
        )
        torch.testing.assert_close(module.scale * (module.b @ module.a).double(), whole, rtol=1e-4, atol=1e-6)


def test_the_score_is_what_transformers_and_peft_answer(
    two: tuple[Store, LearnRequest, Outcome], models: TinyModels
) -> None:
    store, _, outcome = two
    (rung,) = outcome.rungs
    assert (rung.verdict, outcome.reason, outcome.passed) == (GateVerdict.NOT_NEEDED, "GateNotNeeded", True)
    assert outcome.data is not None
    together = read_splits(store.open(outcome.data).path)
    assert set(together.choices) == {f" label{i}" for i in range(6)}
    oracle = Oracle(models.v1)
    with_adapter = answered(oracle, store.open(variant_of(outcome)).path, together)
    assert rung.samples == len(together.gate) == 80
    assert rung.score == pytest.approx(with_adapter, abs=0.03)
    assert rung.reference == pytest.approx(answered(oracle, None, together), abs=0.03)
    assert rung.score > rung.reference + 0.1


@torch.inference_mode()
def answered(oracle: Oracle, adapter: Path | None, splits: Splits) -> float:
    model, words = oracle.model(adapter), tokenizer()
    labels = [words(c).input_ids[0] for c in splits.choices]
    right = 0
    for example in splits.gate:
        logits = model(torch.tensor([words(example.prompt).input_ids])).logits[0, -1, labels]
        right += splits.choices[int(logits.argmax())] == example.completion
    return right / len(splits.gate)


def test_an_appended_task_costs_one_task_and_leaves_the_others_blocks_alone(
    two: tuple[Store, LearnRequest, Outcome],
    make_request: Callable[..., tuple[Store, LearnRequest]],
    learned_tasks: list[str],
) -> None:
    store, _, first = two
    _, longer = make_request("low", "middle", "high", store=store)
    outcome = learn.run(longer, store, quiet())
    assert len(learned_tasks) == 1
    files = {e.name: e.sha256 for e in store.open(variant_of(outcome)).manifest.files}
    before = {e.name: e.sha256 for e in store.open(variant_of(first)).manifest.files}
    assert {name for name in before if files[name] == before[name]} >= {f"block-00{i}.safetensors" for i in (0, 1)}
    assert files[MAGNITUDES] != before[MAGNITUDES]


def test_another_serving_rank_folds_anew_and_learns_nothing(
    two: tuple[Store, LearnRequest, Outcome], learned_tasks: list[str]
) -> None:
    store, request, wide = two
    narrow = learn.run(request.model_copy(update={"max_rank": 4}), store, quiet())
    assert learned_tasks == []
    assert (wide.rank, narrow.rank) == (8, 4)
    evidence = store.root / "results" / f"{hex_of(narrow.input_hash)}.evidence.json"
    assert 0 < json.loads(evidence.read_bytes())["discarded"] < 0.9
    assert 'id="lessons-loss-2"' in (store.root / str(narrow.report)).read_text()


class Killed(BaseException):
    """As a kill would, it passes every handler."""


def test_a_job_that_is_killed_goes_on_after_its_last_finished_task(
    two: tuple[Store, LearnRequest, Outcome],
    make_request: Callable[..., tuple[Store, LearnRequest]],
    learned_tasks: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, request = make_request("low", "middle")
    monkeypatch.setattr(store, "write_result", lambda key, value: _die_after(store, key, value))
    with pytest.raises(Killed):
        learn.run(request, store, quiet())
    assert store.read_result(request.prefix_hash(1), Prefix) is not None
    monkeypatch.undo()
    assert learn.run(request, store, quiet()).variant == two[2].variant
    assert len(learned_tasks) == 1


def _die_after(store: Store, key: Digest, value: Prefix) -> None:
    Store.write_result(store, key, value)
    raise Killed


def test_a_trained_variant_is_better_than_the_base_alone(folders: Path, models: TinyModels, tmp_path: Path) -> None:
    store = Store(tmp_path)
    data = store.publish(ArtifactKind.DATA, folders / "all").digest
    base = store.publish(ArtifactKind.BASE, models.v1).digest
    request = TrainRequest(name="topics", base=base, data=data, max_steps=80, learning_rate="4e-3", rank=4)
    outcome = train.run(request, store, quiet())
    (rung,) = outcome.rungs
    assert (outcome.origin, outcome.reason, outcome.rank) == (Origin.TRAINED, "GateNotNeeded", 4)
    assert rung.interval.lower > 0.05
    expected = answered(Oracle(models.v1), store.open(variant_of(outcome)).path, read_splits(folders / "all"))
    assert rung.score == pytest.approx(expected, abs=0.03)


def test_training_that_does_not_help_leaves_nothing(folders: Path, models: TinyModels, tmp_path: Path) -> None:
    store = Store(tmp_path)
    data = store.publish(ArtifactKind.DATA, folders / "all").digest
    base = store.publish(ArtifactKind.BASE, models.v1).digest
    request = TrainRequest(name="topics", base=base, data=data, max_steps=2, learning_rate="1e-12", rank=4)
    with pytest.raises(NothingLearned, match=r"no checkpoint is better .* than the base alone"):
        train.run(request, store, quiet())
    assert not (store.root / "results").exists()


def command(models: TinyModels, folders: Path, out: Path, *names: str) -> list[str]:
    tasks = [part for name in names for part in ("--task", f"{name}={folders / name / 'train.jsonl'}")]
    settings = ["--max-steps", "3", "--rank", "4", "--learning-rate", "3e-3"]
    return ["learn", "--base", str(models.v1), *tasks, "--out", str(out), *settings]


@pytest.fixture(scope="module")
def learned_folder(models: TinyModels, folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("learned") / "out"
    assert readapt(command(models, folders, out, "low")) == 0
    return out


def test_the_command_goes_on_from_what_its_folder_holds(
    models: TinyModels,
    folders: Path,
    learned_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    learned_tasks: list[str],
    shapes: dict[str, Shape],
) -> None:
    out = shutil.copytree(learned_folder, tmp_path / "out")
    assert readapt(command(models, folders, out, "low", "high")) == 0
    assert len(learned_tasks) == 1
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (said["origin"], said["tasks"], said["rank"]) == ("Incremental", ["low", "high"], 8)
    assert len(said["accuracies"]) == 2
    assert read_adapter(out, shapes).rank == 8
    assert (out / "block-000.safetensors").read_bytes() == (learned_folder / "block-000.safetensors").read_bytes()
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []
    assert 'id="lessons-loss-2"' in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("names", "change", "message"),
    [
        (("high", "low"), [], "holds low, learned from another base, from other data or with other settings"),
        (("low",), ["--rank", "2"], "tasks can only be appended"),
    ],
    ids=["another order", "another rank"],
)
def test_a_folder_of_other_work_is_refused(
    names: Sequence[str],
    change: list[str],
    message: str,
    models: TinyModels,
    folders: Path,
    learned_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = learned_folder
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    capsys.readouterr()
    assert readapt([*command(models, folders, out, *names), *change]) == 64
    assert message in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


BAD_TASKS = {
    "no name": (["=x.jsonl"], "must be NAME=FILE"),
    "no file": (["a"], "must be NAME=FILE"),
    "a name twice": (["a=x", "a=y"], "names must differ"),
    "no such file": (["a=nowhere.jsonl"], "nowhere.jsonl: no such file"),
}


@pytest.mark.parametrize(("tasks", "message"), BAD_TASKS.values(), ids=BAD_TASKS.keys())
def test_bad_tasks_are_said_before_anything_is_loaded(
    tasks: list[str], message: str, models: TinyModels, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [part for task in tasks for part in ("--task", task)]
    assert readapt(["learn", "--base", str(models.v1), *options, "--out", str(tmp_path / "out")]) == 64
    assert message in capsys.readouterr().err
    assert [*tmp_path.glob("out/*")] == []


def test_train_on_folders_prints_its_accuracy(
    models: TinyModels, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], shapes: dict[str, Shape]
) -> None:
    data = [part for s in ("train", "validation", "test") for part in (f"--{s}", str(folders / "low" / f"{s}.jsonl"))]
    settings = ["--max-steps", "80", "--learning-rate", "5e-3", "--target-modules", "v_proj,down_proj"]
    assert readapt(["train", "--base", str(models.v1), *data, "--out", str(tmp_path / "out"), *settings]) == 0
    said = json.loads(capsys.readouterr().out)
    assert -1 < said["interval"]["lower"] <= said["score"] - said["reference"] <= said["interval"]["upper"] < 1
    adapter = read_adapter(tmp_path / "out", shapes)
    assert {name.rsplit(".", 1)[1] for name in adapter.modules} == {"v_proj", "down_proj"}
    assert json.loads((tmp_path / "out" / "evidence.json").read_text())["best"] == said["steps"]
    assert 'id="learning-1"' in (tmp_path / "out" / "report.html").read_text()
    assert len(read_examples(folders / "low" / "test.jsonl")) == said["samples"]
