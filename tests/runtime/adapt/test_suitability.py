"""An adapter, its base and its data must belong together, and what looks odd but is sound must not be refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from readapt_api.adaptation import Metric
from readapt_runtime.adapt.base import LoadedBase, load_base
from readapt_runtime.adapt.comparison import AnswerStream, Pair
from readapt_runtime.adapt.data import Example, Splits
from readapt_runtime.adapt.errors import NoEffect
from readapt_runtime.adapt.exam import Exam
from readapt_runtime.adapt.measure import Measure
from readapt_runtime.adapt.suitability import Effect, require_effect, require_room
from readapt_runtime.examples import BadData
from readapt_runtime.lora_format import LoraAdapter, LoraModule


def exam(pair: Pair, splits: Splits, metric: Metric) -> Exam:
    measure = Measure.of(metric, splits, pair.base)
    return Exam(measure, AnswerStream(pair, splits.stopping, measure.form), 0.03)


def scaled(adapter: LoraAdapter, factor: float) -> LoraAdapter:
    return LoraAdapter({n: LoraModule(n, m.a, m.b, m.scale * factor) for n, m in adapter.modules.items()})


def few(splits: Splits, count: int) -> Splits:
    return replace(splits, search=splits.search[:count], stopping=splits.stopping[:count])


@pytest.fixture(scope="module")
def twin(world: Any, tmp_path_factory: pytest.TempPathFactory) -> LoadedBase:
    """The old base with its hidden units in another order: it answers alike, its weights are another base's."""
    folder = tmp_path_factory.mktemp("twin") / "base"
    shuffled_copy(world.folder / "v1", folder)
    return load_base(folder, f"sha256:{'9' * 64}")


def shuffled_copy(source: Path, target: Path) -> None:
    target.mkdir()
    for file in source.iterdir():
        if file.name != "model.safetensors":
            (target / file.name).write_bytes(file.read_bytes())
    tensors = load_file(source / "model.safetensors")
    order = torch.randperm(tensors["model.norm.weight"].numel(), generator=torch.Generator().manual_seed(7))
    for name, tensor in tensors.items():
        writes = name.endswith(("o_proj.weight", "down_proj.weight", "norm.weight"))
        tensors[name] = (tensor[order] if writes else tensor[:, order]).contiguous()
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("metric", [Metric.ACCURACY, Metric.F1, Metric.AGREEMENT, Metric.TOKEN_LOSS])
def test_an_adapter_of_another_base_is_refused_by_its_effect(world: Any, twin: LoadedBase, metric: Metric) -> None:
    small = few(world.splits, 60)
    prompts = [e.prompt for e in small.stopping[:4]]
    ids = world.old.tokenizer(prompts, return_tensors="pt").input_ids
    torch.testing.assert_close(twin.model(ids).logits, world.old.model(ids).logits, rtol=1e-3, atol=1e-3)
    pair = Pair(twin, world.adapter)
    with pytest.raises(NoEffect, match=r"no more than chance.*was it trained on another base"):
        require_effect(pair, small, exam(pair, small, metric))


@pytest.mark.parametrize("factor", [1.0, 0.5, 0.2])
@pytest.mark.parametrize("count", [8, 90])
def test_a_weak_adapter_on_its_own_base_is_no_false_alarm(world: Any, factor: float, count: int) -> None:
    pair, small = Pair(world.old, scaled(world.adapter, factor)), few(world.splits, count)
    effect = require_effect(pair, small, exam(pair, small, Metric.ACCURACY))
    assert effect is not None
    assert not effect.none
    assert not effect.chance
    assert effect.samples == min(count, 48)


def test_data_of_another_task_are_refused_as_well(world: Any) -> None:
    """The labels turned by one: what the adapter says is never right."""
    labels = world.splits.choices
    turned = {label: labels[(i + 1) % len(labels)] for i, label in enumerate(labels)}
    other = replace(
        few(world.splits, 90),
        search=tuple(Example(e.prompt, " g1") for e in world.splits.search[:90]),
        stopping=tuple(Example(e.prompt, turned[e.completion]) for e in world.splits.stopping[:90]),
    )
    pair = Pair(world.old, world.adapter)
    with pytest.raises(NoEffect, match="or are the data of another task"):
        require_effect(pair, other, exam(pair, other, Metric.ACCURACY))


class Marks:
    """An exam with made-up scores."""

    def __init__(self, old: Sequence[float], alone: Sequence[float]) -> None:
        self.measure = Measure(Metric.EXACT_MATCH, Measure.of)  # type: ignore[arg-type]
        self._old, self._alone = list(old), list(alone)

    def scores(self, pair: Pair | None) -> list[float]:
        return self._old if pair is None else self._alone


def test_an_adapter_that_answers_better_is_not_refused_for_its_loss(world: Any, twin: LoadedBase) -> None:
    """As after training by preferences: references get less likely while answers get better."""
    pair, small = Pair(twin, world.adapter), few(world.splits, 60)
    better: Any = Marks([1.0] * 40 + [0.0] * 20, [1.0] * 10 + [0.0] * 50)
    assert require_effect(pair, small, better) is not None
    alike: Any = Marks([1.0] * 31 + [0.0] * 29, [1.0] * 30 + [0.0] * 30)
    with pytest.raises(NoEffect, match=r"ExactMatch 51\.7 %, 50\.0 %"):
        require_effect(pair, small, alike)


@pytest.mark.parametrize(
    ("effect", "none", "chance"),
    [
        (Effect(48, alone=2.0, loss=1.9, error=0.01, twins=(2.1, 2.2, 2.3, 2.4)), False, False),
        (Effect(48, alone=2.0, loss=2.1, error=0.01, twins=(2.6, 2.6, 2.7, 2.6)), True, False),
        (Effect(48, alone=2.0, loss=2.1, error=0.1, twins=(2.6, 2.6, 2.7, 2.6)), False, False),
        (Effect(48, alone=2.0, loss=2.0, error=0.0, twins=(2.0, 2.0, 2.0, 2.0)), True, False),
        (Effect(48, alone=9.0, loss=5.0, error=0.1, twins=(4.9, 5.1, 5.3, 5.2)), False, True),
        (Effect(48, alone=9.0, loss=4.0, error=0.1, twins=(4.9, 5.1, 5.3, 5.2)), False, False),
        (Effect(48, alone=2.0, loss=1.9, error=0.01, twins=(1.99, 2.2, 2.3, 2.4)), False, False),
        (Effect(48, alone=9.0, loss=1.0, error=0.1, twins=()), False, False),
    ],
    ids=[
        "improves",
        "harms",
        "too unsure",
        "does nothing",
        "as good as its twins",
        "better than its twins",
        "improves a little, twins hardly",
        "plainly at home",
    ],
)
def test_no_effect_is_claimed_only_where_it_is_sure(effect: Effect, none: bool, chance: bool) -> None:
    assert (effect.none, effect.chance) == (none, chance)


def test_too_few_examples_tell_nothing(world: Any, twin: LoadedBase) -> None:
    pair, small = Pair(twin, world.adapter), few(world.splits, 7)
    assert require_effect(pair, small, exam(pair, small, Metric.ACCURACY)) is None


def test_unlabelled_data_cannot_tell(world: Any, twin: LoadedBase) -> None:
    unlabelled = replace(world.splits, labelled=False, choices=())
    pair = Pair(twin, world.adapter)
    assert require_effect(pair, unlabelled, exam(pair, unlabelled, Metric.AGREEMENT)) is None


@pytest.mark.parametrize("part", ["train", "search", "stopping", "gate"])
def test_prompts_longer_than_the_model_are_named_with_their_length(world: Any, part: str) -> None:
    splits, longest = few(world.splits, 3), world.old.longest
    fits = " ".join(["g0"] * (longest - 2))
    require_room(world.old, replace(splits, **{part: (Example(fits, " label1"),)}, inputs=(fits,)))
    with pytest.raises(
        BadData, match=rf"{longest} tokens and an end does not fit the base, which reads {longest}: 'g0"
    ):
        require_room(world.old, replace(splits, **{part: (Example(f"{fits} g1", " label1"),)}))
    with pytest.raises(BadData, match="does not fit"):
        require_room(world.old, replace(splits, inputs=(f"{fits} g1 g2",)))
