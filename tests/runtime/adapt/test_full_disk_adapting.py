"""Adapt on a disk that is really full."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest

from readapt_api.adaptation import Policy
from readapt_api.artifacts import ArtifactKind, FactorBlock
from readapt_api.jobs import AdaptationSettings, AdaptItem, AdaptRequest, DriftRequest, GateSettings
from readapt_runtime.adapt import journal
from readapt_runtime.jobs.drift import run as measure_drift
from readapt_runtime.progress import JsonLog
from readapt_runtime.store import Store
from readapt_testing.small_disk import small_disk, suffer

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]


@pytest.mark.parametrize(
    ("policy", "levels_kib"),
    [
        (Policy.COPY, (8,)),
        pytest.param(Policy.RELORA, (0, 64, 512), marks=pytest.mark.fault),
        pytest.param(Policy.RETRAIN, (64, 512, 1024), marks=pytest.mark.fault),
    ],
)
def test_without_room_a_job_keeps_its_progress_and_makes_the_same_variant_later(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: Policy, levels_kib: tuple[int, ...]
) -> None:
    monkeypatch.setattr(journal, "SAVE_EVERY_S", 0.0)
    store = Store(tmp_path / "before")
    request = _request(store, world, policy)
    with small_disk(tmp_path / "disk", 64) as disk:
        shortages = suffer(disk, tmp_path, store.root, request, levels_kib)
    assert all(each.failed for each in shortages)
    assert [bool(each.kept) for each in shortages] == [level > 0 for level in levels_kib]


def _request(store: Store, world: Any, policy: Policy) -> AdaptRequest:
    """Every policy passes its gate here: all lose less than everything."""
    old, new = (store.publish(ArtifactKind.BASE, world.folder / name).digest for name in ("v1", "v2"))
    adapter = world.folder / "adapter"
    variant = store.publish(ArtifactKind.VARIANT, adapter, base=old, rank=8, blocks=(FactorBlock(),)).digest
    drift = measure_drift(DriftRequest(old_base=old, new_base=new), store, JsonLog(io.StringIO())).digest
    data = store.publish(ArtifactKind.DATA, world.folder / "data").digest
    settings = AdaptationSettings(policy=policy, trials=4, max_steps=20, learning_rate="1e-2", batch_size=16)
    gate = GateSettings(max_samples=300, max_regression="0.9")
    item = AdaptItem(name="topics", reference=variant, data=data, adaptation=settings, gate=gate)
    return AdaptRequest(old_base=old, new_base=new, drift=drift, items=(item,))
