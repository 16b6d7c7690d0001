"""The base moves: directions stay, magnitudes are fitted, and the Job's gate judges what comes of it."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from readapt_api.artifacts import MAGNITUDES, ArtifactKind, Origin
from readapt_api.jobs import AdaptationSettings, AdaptItem, AdaptRequest, DriftRequest, GateSettings, GateVerdict
from readapt_runtime.adapt.base import LoadedBase, load_base
from readapt_runtime.adapt.data import Splits
from readapt_runtime.adapt.factors import attached, side_factors
from readapt_runtime.continual.blocks import Learned
from readapt_runtime.continual.files import factor_blocks, read_learned, write_learned
from readapt_runtime.continual.freezing import Reduction, freeze
from readapt_runtime.continual.learning import Course, Pupil, descend
from readapt_runtime.continual.losses import ChoiceLoss
from readapt_runtime.continual.refit import gains_of, refit
from readapt_runtime.jobs import adapt, drift
from readapt_runtime.lora_format import Shape
from readapt_runtime.progress import JsonLog
from readapt_runtime.store import Store
from readapt_runtime.training.training import new_adapter
from readapt_testing.tiny_models import TinyModels

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
SETTINGS = AdaptationSettings(policy="ReLoRA", min_retention="0", learning_rate="1e-3", batch_size=16)


@pytest.fixture(scope="module")
def splits(task_splits: Callable[[range], Splits]) -> Splits:
    return task_splits(range(8))


@pytest.fixture(scope="module")
def learned(base: LoadedBase, shapes: dict[str, Shape], task_splits: Callable[[range], Splits]) -> Learned:
    """Two tasks on v1."""
    found = Learned()
    for number, labels in enumerate((range(4), range(4, 8))):
        examples = task_splits(labels)
        loss = ChoiceLoss(base, examples.train, examples.choices)
        pupil = Pupil(base, found, new_adapter(shapes, 4, 16), seed=number)
        list(descend(pupil, loss, loss.lengths, Course(40, 4e-3, 16, seed=number)))
        found = freeze(*pupil.outcome(), f"task {number}", Reduction()).learned
    return found


@pytest.fixture(scope="module")
def moved(models: TinyModels) -> LoadedBase:
    return load_base(models.v2, f"sha256:{'2' * 64}")


@torch.inference_mode()
def loss_on_the_gate(base: LoadedBase, learned: Learned, splits: Splits) -> float:
    loss = ChoiceLoss(base, splits.gate[:200], splits.choices)
    with attached(base.model, side_factors(learned.adapter, base)):
        return float(loss(range(200)))


def test_fitted_magnitudes_are_better_than_the_old_ones_and_directions_stay(
    moved: LoadedBase, learned: Learned, splits: Splits
) -> None:
    fitted = refit(moved, learned, splits, (), SETTINGS, seed=0, log=JsonLog(io.StringIO()))
    assert loss_on_the_gate(moved, fitted, splits) < loss_on_the_gate(moved, learned, splits) - 0.02
    assert all(new.directions is old.directions for new, old in zip(fitted.blocks, learned.blocks, strict=True))
    gains = gains_of(learned, fitted)
    assert min(gains) < 0.98
    assert max(gains) > 1.02
    assert all(0.5 < gain < 2 for gain in gains)


def test_a_variant_that_is_fitted_shares_its_blocks_with_the_one_on_the_old_base(
    models: TinyModels, learned: Learned, splits: Splits, tmp_path: Path
) -> None:
    """A wide margin, so that the first rung passes."""
    log, store = JsonLog(io.StringIO()), Store(tmp_path / "store")
    old, new = (store.publish(ArtifactKind.BASE, folder).digest for folder in (models.v1, models.v2))
    write_learned(tmp_path / "variant", learned, old, 32)
    reference = store.publish(
        ArtifactKind.VARIANT, tmp_path / "variant", base=old, rank=8, blocks=factor_blocks(learned)
    )
    item = AdaptItem(
        name="topics",
        reference=reference.digest,
        data=store.publish(ArtifactKind.DATA, models.root / "data" / "adapter").digest,
        adaptation=SETTINGS,
        gate=GateSettings(max_regression="0.6", max_samples=80),
    )
    between = drift.run(DriftRequest(old_base=old, new_base=new), store, log).digest
    (outcome,) = adapt.run(AdaptRequest(old_base=old, new_base=new, drift=between, items=(item,)), store, log)
    assert [(r.origin, r.verdict) for r in outcome.rungs] == [(Origin.REFITTED, GateVerdict.PASSED)]
    assert outcome.variant is not None
    made = store.open(outcome.variant)
    assert made.manifest.blocks == reference.blocks
    before = {entry.name: entry.sha256 for entry in reference.files}
    after = {entry.name: entry.sha256 for entry in made.manifest.files}
    assert all(after[block.weights] == before[block.weights] for block in reference.blocks)
    assert after[MAGNITUDES] != before[MAGNITUDES]
    assert read_learned(made.path).magnitudes != learned.magnitudes
