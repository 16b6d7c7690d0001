"""Which checkpoint is kept, when tuning stops, and what it starts from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from readapt_runtime.adapt.base import LoadedBase, load_base
from readapt_runtime.adapt.data import Example
from readapt_runtime.adapt.factors import attached, side_factors
from readapt_runtime.adapt.retention import sample, text_losses
from readapt_runtime.adapt.tokens import encode, mean_losses
from readapt_runtime.adapt.training import trainable
from readapt_runtime.adapt.tuning import Evaluate, Evaluation, Evenly, Lessons, Tuned, Tuning, tune
from readapt_runtime.lora_format import LoraAdapter, LoraModule, linear_shapes, read_adapter
from readapt_testing.tiny_llama import write_adapter_folder, write_base

EXAMPLES = [Example(f"Query {i}:", f" {'yes' if i % 2 else 'no'}") for i in range(24)]
SETTINGS = Tuning(max_steps=12, learning_rate=1e-2, batch_size=4, seed=3, evaluations=4, patience=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tuning")
    write_base(root / "base", seed=6)
    write_adapter_folder(root / "adapter", root / "base", rank=4, seed=2)
    return root


@pytest.fixture(scope="module")
def base(folder: Path) -> LoadedBase:
    return load_base(folder / "base", f"sha256:{'0' * 64}")


@pytest.fixture(scope="module")
def start(folder: Path, base: LoadedBase) -> LoraAdapter:
    return read_adapter(folder / "adapter", linear_shapes(base.model.config.to_dict()))


def seen(step: int, score: float, feasible: bool = True, ready: bool = False, clear: bool = False) -> Evaluation:
    return Evaluation(step, score, None, feasible, ready, clear)


def scripted(*later: Evaluation) -> Evaluate:
    by_step = {evaluation.step: evaluation for evaluation in later}
    return lambda step, *_: by_step[step]


def tuned(base: LoadedBase, start: LoraAdapter, first: Evaluation, *later: Evaluation) -> Tuned:
    return tune(base, start, first, Lessons(encode(base, EXAMPLES)), SETTINGS, scripted(*later))


def test_the_best_checkpoint_above_the_retention_floor_is_kept(base: LoadedBase, start: LoraAdapter) -> None:
    later = (seen(3, 0.8), seen(6, 0.95, feasible=False), seen(9, 0.85), seen(12, 0.85))
    found = tuned(base, start, seen(0, 0.7), *later)
    assert found.best == seen(9, 0.85)
    assert [e.step for e in found.curve] == [0, 3, 6, 9, 12]
    assert len(found.train_losses) == 12


def test_it_stops_when_two_evaluations_in_a_row_are_ready(base: LoadedBase, start: LoraAdapter) -> None:
    found = tuned(base, start, seen(0, 0.7), seen(3, 0.9, ready=True), seen(6, 0.91, ready=True))
    assert found.best.step == 6
    assert len(found.train_losses) == 6


def test_one_evaluation_that_is_clearly_ready_is_enough(base: LoadedBase, start: LoraAdapter) -> None:
    found = tuned(base, start, seen(0, 0.7), seen(3, 0.95, ready=True, clear=True))
    assert found.best.step == len(found.train_losses) == 3


def test_evaluations_are_dense_at_first() -> None:
    settings = Tuning(max_steps=300, learning_rate=1e-3, batch_size=8, seed=0)
    assert [step for step in range(1, 301) if settings.evaluates(step)] == [19, 38, 75, 150, 225, 300]


def test_it_stops_when_nothing_gets_better_and_keeps_the_start(base: LoadedBase, start: LoraAdapter) -> None:
    found = tuned(base, start, seen(0, 0.9), seen(3, 0.9), seen(6, 0.8))
    assert found.best.step == 0
    assert found.adapter is start
    assert len(found.train_losses) == 6


def test_before_half_of_the_steps_nothing_is_given_up(base: LoadedBase, start: LoraAdapter) -> None:
    """A good start often gets worse first: dense evaluations would tell of that alone."""
    dense = replace(SETTINGS, max_steps=16, evaluations=6, patience=2)
    later = (seen(1, 0.8), seen(2, 0.7), seen(4, 0.7), seen(8, 0.95), seen(12, 0.94), seen(16, 0.93))
    found = tune(base, start, seen(0, 0.9), Lessons(encode(base, EXAMPLES)), dense, scripted(*later))
    assert found.best.step == 8
    assert len(found.train_losses) == 16


def test_what_still_rises_is_not_given_up(base: LoadedBase, start: LoraAdapter) -> None:
    found = tuned(base, start, seen(0, 0.9), seen(3, 0.7), seen(6, 0.8), seen(9, 0.91), seen(12, 0.92))
    assert found.best.step == 12


def test_what_starts_from_nothing_is_evaluated_evenly() -> None:
    settings = Evenly(max_steps=300, learning_rate=1e-3, batch_size=8, seed=0)
    assert [step for step in range(1, 301) if settings.evaluates(step)] == list(range(30, 301, 30))


def test_directions_of_zero_restart_without_changing_the_function(base: LoadedBase, start: LoraAdapter) -> None:
    def widened(module: LoraModule) -> LoraModule:
        a = torch.cat([module.a, torch.zeros(2, module.a.shape[1])])
        return LoraModule(module.name, a, torch.cat([module.b, torch.zeros(module.b.shape[0], 2)], dim=1), module.scale)

    wide = LoraAdapter({name: widened(module) for name, module in start.modules.items()})
    factors = trainable(wide, base, seed=1)
    rows = encode(base, EXAMPLES)
    with attached(base.model, side_factors(start, base)):
        expected = mean_losses(base, rows)
    with attached(base.model, factors):
        torch.testing.assert_close(mean_losses(base, rows), expected, rtol=1e-4, atol=1e-5)
    for side in factors.values():
        assert side.a[4:].abs().min() > 0
        assert not side.b[:, 4:].any()
    moved = tune(base, wide, seen(0, 0.0), Lessons(rows), SETTINGS, lambda step, *_: seen(step, float(step))).adapter
    assert all(module.b[:, 4:].abs().max() > 0 for module in moved.modules.values())


def test_replay_keeps_what_task_examples_alone_destroy(base: LoadedBase, start: LoraAdapter) -> None:
    text = sample(base, 16, 12, seed=1).tolist()
    unseen = sample(base, 16, 12, seed=2).tolist()

    def loss_after(replay: float) -> float:
        settings = Tuning(
            max_steps=40, learning_rate=1e-2, batch_size=4, seed=3, evaluations=1, replay=replay, replay_rows=4
        )
        lessons = Lessons(encode(base, EXAMPLES), text)
        found = tune(base, start, seen(0, 0.0), lessons, settings, lambda step, *_: seen(step, 1.0)).adapter
        with attached(base.model, side_factors(found, base)):
            return sum(text_losses(base, unseen)) / len(unseen)

    assert loss_after(1.0) < loss_after(0.0) - 0.2


def test_the_anchor_is_strong_first_and_weak_later() -> None:
    weights = [SETTINGS.anchor_weight(step) for step in range(SETTINGS.max_steps)]
    assert weights == [1.0] * 3 + [0.1] * 9
