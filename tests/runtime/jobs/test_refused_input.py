"""Input that no Job can work on: exit code 64, a message that names what is wrong, nothing published, no record."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from readapt_api.artifacts import ArtifactKind, FactorBlock
from readapt_api.contract import Digest
from readapt_api.digest import hex_of
from readapt_api.jobs import (
    AdaptationSettings,
    AdaptItem,
    AdaptRequest,
    DriftRequest,
    GateSettings,
    LearnRequest,
    LearnTask,
    Request,
    TrainRequest,
)
from readapt_runtime.cli import run
from readapt_runtime.store import Store
from readapt_testing.damage import Damage, configured, tensors
from readapt_testing.tiny_models import TinyModels, tiny_models
from readapt_testing.twin_base import shuffled_copy

Q = "model.layers.1.self_attn.q_proj.weight"
SPLITS = ("train", "validation", "test")
SHORT = AdaptationSettings(trials=4, max_steps=8)


@pytest.fixture(scope="session")
def models(fixture_cache: Path) -> TinyModels:
    return tiny_models(fixture_cache)


@pytest.fixture(scope="session")
def twin(models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``models.adapter`` was not trained on."""
    return shuffled_copy(models.v1, tmp_path_factory.mktemp("twin") / "base")


@dataclass(frozen=True, slots=True)
class Shelf:
    """Publishes what requests name."""

    store: Store
    sources: Path
    data: Path

    def base(self, name: str = "v1") -> Digest:
        return self.store.publish(ArtifactKind.BASE, self.sources / name).digest

    def files(self) -> Digest:
        return self.store.publish(ArtifactKind.DATA, self.data).digest

    def adapting(self, bench: Any, adapter: Path, old: Digest | None = None, new: Digest | None = None) -> AdaptRequest:
        old, new = old or self.base(), new or self.base("v2")
        variant = self.store.publish(ArtifactKind.VARIANT, adapter, base=old, rank=4, blocks=(FactorBlock(),))
        drift = bench.run(DriftRequest(old_base=old, new_base=new)).summary.drift.digest
        item = AdaptItem(name="support", reference=variant.digest, data=self.files(), adaptation=SHORT)
        return AdaptRequest(old_base=old, new_base=new, drift=drift, items=(item,))


@pytest.fixture
def shelf(bench: Any, sources: Path, tmp_path: Path) -> Shelf:
    data = tmp_path / "data"
    data.mkdir()
    for split in SPLITS:
        lines = [{"prompt": f"{split} {i}", "completion": (" yes", " no")[i % 2]} for i in range(60)]
        write(data / f"{split}.jsonl", lines)
    return Shelf(bench.store, sources, data)


def write(path: Path, lines: Iterable[dict[str, str]]) -> None:
    with path.open("a") as stream:
        stream.writelines(json.dumps(line) + "\n" for line in lines)


def refuse(bench: Any, request: Request, reason: str, message: str) -> None:
    before = listed(bench.store)
    ended = bench.run(request)
    assert (ended.code, ended.summary.ok, ended.summary.reason) == (64, False, reason), ended.summary.message
    assert message in ended.summary.message
    assert listed(bench.store) == before
    named = [request.item_hash(i) for i in request.items] if isinstance(request, AdaptRequest) else [request.input_hash]
    assert not [work for work in named if (bench.store.root / "results" / f"{hex_of(work)}.json").exists()]


def listed(store: Store) -> set[Path]:
    """Answers of the old pair may be kept, for whoever asks it again."""
    return {*store.root.glob("artifacts/*"), *store.root.glob("results/*.*.*")}


BASES: dict[str, tuple[Damage, str, str]] = {
    "NaN": (tensors(lambda t: t[Q].view(-1)[3:4].fill_(torch.nan)), "BadWeights", f"{Q}: NaN or infinite values"),
    "a missing tensor": (tensors(lambda t: t.pop(Q)), "DifferentModels", f"no tensor {Q}"),
    "quantised to int8": (
        tensors(lambda t: t.update({Q: torch.zeros(64, 64, dtype=torch.int8)})),
        "BadWeights",
        f"{Q}: dtype I8; allowed are F32, F16, BF16",
    ),
    "quantised, says the config": (
        configured("config.json", quantization_config={"quant_method": "gptq"}),
        "UnsupportedModel",
        "quantization_config",
    ),
}


@pytest.mark.parametrize("damaged", ["old", "new"])
@pytest.mark.parametrize(("damage", "reason", "message"), BASES.values(), ids=BASES.keys())
def test_no_drift_is_measured_of_a_damaged_base(
    damage: Damage,
    reason: str,
    message: str,
    damaged: str,
    bench: Any,
    shelf: Shelf,
    sources: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken = Path(shutil.copytree(sources / "v2", tmp_path / "broken"))
    damage(broken)
    folders = (broken, sources / "v1") if damaged == "old" else (sources / "v1", broken)
    old, new = (shelf.store.publish(ArtifactKind.BASE, folder).digest for folder in folders)
    refuse(bench, DriftRequest(old_base=old, new_base=new), reason, message)
    capsys.readouterr()
    ends = ["--from", str(folders[0]), "--to", str(folders[1])]
    assert run(["drift", *ends, "--out", str(tmp_path / "out")]) == 64
    assert message in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [({"use_dora": True}, "use_dora: DoRA"), ({"bias": "all"}, "bias 'all'"), ({"lora_bias": True}, "lora_bias")],
    ids=["DoRA", "bias", "lora_bias"],
)
def test_no_adapter_is_carried_whose_kind_is_not_computed(
    options: dict[str, Any], message: str, bench: Any, shelf: Shelf, sources: Path, tmp_path: Path
) -> None:
    adapter = Path(shutil.copytree(sources / "adapter", tmp_path / "adapter"))
    configured("adapter_config.json", **options)(adapter)
    refuse(bench, shelf.adapting(bench, adapter), "BadWeights", f"{message} cannot be served")


def _train(bench: Any, shelf: Shelf, sources: Path) -> Request:
    return TrainRequest(name="support", base=shelf.base(), data=shelf.files(), max_steps=8)


def _learn(bench: Any, shelf: Shelf, sources: Path) -> Request:
    return LearnRequest(
        name="support", base=shelf.base(), tasks=(LearnTask(name="a", data=shelf.files(), max_steps=8),)
    )


def _adapt(bench: Any, shelf: Shelf, sources: Path) -> Request:
    return shelf.adapting(bench, sources / "adapter")


LINES: dict[str, tuple[str, dict[str, str], str]] = {
    "a prompt longer than the model": (
        "train",
        {"prompt": "a" * 600, "completion": " yes"},
        "an example of 604 tokens and an end does not fit the base, which reads 512",
    ),
    "a prompt of the gate longer than the model": ("test", {"prompt": "b" * 600, "completion": " yes"}, "reads 512"),
    "a label of its own": ("test", {"prompt": "a", "completion": " maybe"}, "none of train's 2 labels, such as"),
}


@pytest.mark.parametrize("asked", [_adapt, _train, _learn], ids=["adapt", "train", "learn"])
@pytest.mark.parametrize(("split", "line", "message"), LINES.values(), ids=LINES.keys())
def test_no_work_is_done_on_examples_that_do_not_fit(
    asked: Callable[[Any, Shelf, Path], Request],
    split: str,
    line: dict[str, str],
    message: str,
    bench: Any,
    shelf: Shelf,
    sources: Path,
) -> None:
    write(shelf.data / f"{split}.jsonl", [line])
    refuse(bench, asked(bench, shelf, sources), "BadData", message)


def test_nothing_is_carried_to_a_base_whose_numbers_overflow(
    models: TinyModels, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = Path(shutil.copytree(models.v2, tmp_path / "v2"))
    tensors(lambda t: t["model.norm.weight"].fill_(3e38))(new)
    bases = ["--old-base", str(models.v1), "--new-base", str(new), "--adapter", str(models.adapter)]
    data = [part for split in SPLITS for part in (f"--{split}", str(models.data("adapter", split)))]
    assert run(["adapt", *bases, *data, "--out", str(tmp_path / "out"), "--max-samples", "200"]) == 64
    assert "NonFiniteAnswers: the new base answers NaN or infinity" in capsys.readouterr().err


def test_a_test_file_without_examples_is_not_replaced(
    models: TinyModels, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "test.jsonl").touch()
    bases = ["--old-base", str(models.v1), "--new-base", str(models.v2), "--adapter", str(models.adapter)]
    data = [part for split in ("train", "validation") for part in (f"--{split}", str(models.data("adapter", split)))]
    held_out = ["--test", str(tmp_path / "test.jsonl")]
    assert run(["adapt", *bases, *data, *held_out, "--out", str(tmp_path / "out")]) == 64
    assert "test.jsonl has no examples" in capsys.readouterr().err


def test_no_adapter_of_another_base_is_carried_by_a_job(
    bench: Any, shelf: Shelf, models: TinyModels, twin: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(models.root / "data" / "adapter", tmp_path / "its-data"))
    old, new = (shelf.store.publish(ArtifactKind.BASE, folder).digest for folder in (twin, models.v2))
    item_data = shelf.store.publish(ArtifactKind.DATA, data).digest
    asked = shelf.adapting(bench, models.adapter, old, new)
    item = asked.items[0].model_copy(update={"data": item_data, "gate": GateSettings(max_samples=200)})
    message = "no more than chance"
    refuse(bench, asked.model_copy(update={"items": (item,)}), "NoEffect", message)


def test_no_adapter_of_another_base_is_carried_by_the_command(
    models: TinyModels, twin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    bases = ["--old-base", str(twin), "--new-base", str(models.v2), "--adapter", str(models.adapter)]
    data = [part for split in SPLITS for part in (f"--{split}", str(models.data("adapter", split)))]
    assert run(["adapt", *bases, *data, "--out", str(out), "--max-samples", "200"]) == 64
    said = capsys.readouterr()
    assert said.out == ""
    assert "NoEffect: on the base that it is said to be made for the adapter does no more than chance" in said.err
    assert [path.name for path in out.iterdir() if not path.name.startswith(".")] == []
