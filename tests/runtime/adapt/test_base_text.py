"""Text that a base writes, and what a base loses on text, against transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from readapt_runtime.adapt.base import LoadedBase, load_base
from readapt_runtime.adapt.retention import cached_replay, cached_yardstick, make_yardstick, sample, text_losses
from readapt_runtime.store import Store
from readapt_testing.tiny_llama import Oracle, write_base


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("text") / "base", seed=3)


@pytest.fixture(scope="module")
def base(folder: Path) -> LoadedBase:
    return load_base(folder, f"sha256:{'3' * 64}")


def test_text_is_drawn_from_the_models_distribution(folder: Path, base: LoadedBase) -> None:
    drawn = sample(base, 3000, 1, seed=1)[:, 0]
    with torch.no_grad():
        expected = Oracle(folder).model(None)(torch.tensor([[base.start]])).logits[0, -1].softmax(-1)
    counts = torch.bincount(drawn, minlength=expected.numel())
    common = expected > 0.01
    deviations = (counts[common] - 3000 * expected[common]) / (3000 * expected[common] * (1 - expected[common])).sqrt()
    assert int(common.sum()) >= 5
    assert deviations.abs().max() < 4.5


def test_text_follows_its_own_beginning_and_its_seed(base: LoadedBase) -> None:
    first, again, other = (sample(base, 4, 12, seed) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len({tuple(row) for row in first.tolist()}) == 4


def test_losses_are_those_of_transformers(folder: Path, base: LoadedBase) -> None:
    rows = sample(base, 11, 9, seed=2)
    tokens = torch.cat([torch.full((11, 1), base.start), rows], dim=1)
    model = Oracle(folder).model(None)
    with torch.no_grad():
        expected = [float(model(row[None], labels=row[None]).loss) for row in tokens]
    assert text_losses(base, rows.tolist()) == pytest.approx(expected, rel=1e-4)


def test_equal_bases_have_no_gap_to_measure(base: LoadedBase) -> None:
    assert not make_yardstick(base, base, sequences=4, length=6).measurable


def test_yardstick_and_replay_are_kept_in_the_store_and_apart(base: LoadedBase, tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = cached_yardstick(store, base, base)
    assert len(list((tmp_path / "results").iterdir())) == 1
    assert cached_yardstick(store, base, base) == first
    replay = cached_replay(store, base)
    assert cached_replay(store, base) == replay
    assert not set(replay.tokens) & {row[: len(replay.tokens[0])] for row in first.tokens}
