"""Train and learn on a disk that is really full."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from readapt_api.artifacts import ArtifactKind
from readapt_api.jobs import JobKind, LearnRequest, LearnTask, Request, TrainRequest
from readapt_runtime.adapt import journal
from readapt_runtime.adapt.data import Splits
from readapt_runtime.store import Store
from readapt_testing.small_disk import small_disk, suffer
from readapt_testing.tiny_models import TinyModels

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]
LEVELS_KIB = (0, 160)


@pytest.mark.parametrize("kind", [JobKind.TRAIN, JobKind.LEARN])
def test_without_room_a_job_keeps_its_progress_and_makes_the_same_variant_later(
    models: TinyModels,
    task_splits: Callable[[range], Splits],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: JobKind,
) -> None:
    monkeypatch.setattr(journal, "SAVE_EVERY_S", 0.0)
    store = Store(tmp_path / "before")
    request = _request(store, models, task_splits(range(4)), tmp_path / "data", kind)
    with small_disk(tmp_path / "disk", 64) as disk:
        shortages = suffer(disk, tmp_path, store.root, request, LEVELS_KIB)
    assert all(each.failed for each in shortages)
    assert [bool(each.kept) for each in shortages] == [False, True]


def _request(store: Store, models: TinyModels, splits: Splits, folder: Path, kind: JobKind) -> Request:
    folder.mkdir()
    parts = {"train": splits.train, "validation": (*splits.search, *splits.stopping), "test": splits.gate[:40]}
    for part, examples in parts.items():
        rows = [json.dumps({"prompt": e.prompt, "completion": e.completion}) + "\n" for e in examples]
        (folder / f"{part}.jsonl").write_text("".join(rows))
    base = store.publish(ArtifactKind.BASE, models.v1).digest
    data = store.publish(ArtifactKind.DATA, folder).digest
    if kind is JobKind.TRAIN:
        return TrainRequest(name="low", base=base, data=data, rank=4, max_steps=30, learning_rate="4e-3", batch_size=16)
    task = LearnTask(name="low", data=data, rank=4, max_steps=8, learning_rate="4e-3", batch_size=16)
    return LearnRequest(name="topics", base=base, tasks=(task,), max_rank=32)
