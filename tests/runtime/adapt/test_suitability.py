"""An adapter, its base and its data must belong together, and what looks odd but is sound must not be refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from readapt_api.adaptation import Metric
from readapt_runtime.adapt.base import LoadedBase, load_base
from readapt_runtime.adapt.comparison import AnswerStream, Pair
from readapt_runtime.adapt.data import Example, Splits, read_splits
from readapt_runtime.adapt.errors import NoEffect
from readapt_runtime.adapt.exam import Exam
from readapt_runtime.adapt.forms import LikeliestChoice
from readapt_runtime.adapt.measure import Measure
from readapt_runtime.adapt.suitability import Effect, require_effect, require_room
from readapt_runtime.examples import BadData
from readapt_runtime.lora_format import LoraAdapter, LoraModule, base_shapes, read_adapter
from readapt_testing.tiny_models import TinyModels, tiny_models
from readapt_testing.twin_base import shuffled_copy


@dataclass(frozen=True)
class Home:
    """An adapter, the base that it was trained on, and its data."""

    models: TinyModels
    base: LoadedBase
    adapter: LoraAdapter
    splits: Splits


@pytest.fixture(scope="module")
def home(fixture_cache: Path) -> Home:
    models = tiny_models(fixture_cache)
    base = load_base(models.v1, f"sha256:{'8' * 64}")
    adapter = read_adapter(models.adapter, base_shapes(models.v1))
    return Home(models, base, adapter, read_splits(models.root / "data" / "adapter"))


def exam(pair: Pair, splits: Splits, metric: Metric) -> Exam:
    measure = Measure.of(metric, splits, pair.base)
    return Exam(measure, AnswerStream(pair, splits.stopping, measure.form), 0.03)


def scaled(adapter: LoraAdapter, factor: float) -> LoraAdapter:
    return LoraAdapter({n: LoraModule(n, m.a, m.b, m.scale * factor) for n, m in adapter.modules.items()})


def few(splits: Splits, count: int) -> Splits:
    return replace(splits, search=splits.search[:count], stopping=splits.stopping[:count])


@pytest.fixture(scope="module")
def twin(home: Home, tmp_path_factory: pytest.TempPathFactory) -> LoadedBase:
    """The old base with its units in another order: it answers alike, its weights are another base's."""
    folder = tmp_path_factory.mktemp("twin") / "base"
    shuffled_copy(home.models.v1, folder)
    return load_base(folder, f"sha256:{'9' * 64}")


@pytest.mark.parametrize("metric", [Metric.ACCURACY, Metric.F1, Metric.AGREEMENT, Metric.TOKEN_LOSS])
def test_an_adapter_of_another_base_is_refused_by_its_effect(home: Home, twin: LoadedBase, metric: Metric) -> None:
    small = few(home.splits, 60)
    prompts = [e.prompt for e in small.stopping[:4]]
    ids = home.base.tokenizer(prompts, return_tensors="pt").input_ids
    torch.testing.assert_close(twin.model(ids).logits, home.base.model(ids).logits, rtol=1e-3, atol=1e-3)
    pair = Pair(twin, home.adapter)
    with pytest.raises(NoEffect, match=r"no more than chance.*was it trained on another base"):
        require_effect(pair, small, exam(pair, small, metric))


@pytest.mark.parametrize("factor", [1.0, 0.5, 0.2])
@pytest.mark.parametrize("count", [8, 90])
@pytest.mark.parametrize("metric", [Metric.ACCURACY, Metric.TOKEN_LOSS])
def test_a_weak_adapter_on_its_own_base_is_no_false_alarm(
    home: Home, factor: float, count: int, metric: Metric
) -> None:
    pair, small = Pair(home.base, scaled(home.adapter, factor)), few(home.splits, count)
    effect = require_effect(pair, small, exam(pair, small, metric))
    if metric is Metric.TOKEN_LOSS:
        assert effect is not None
        assert (effect.samples, effect.none, effect.chance) == (min(count, 48), False, False)


def test_data_of_another_task_are_refused_as_well(home: Home) -> None:
    other = read_splits(home.models.root / "data" / "checkpoint")
    pair = Pair(home.base, home.adapter)
    with pytest.raises(NoEffect, match="or are the data of another task"):
        require_effect(pair, other, exam(pair, other, Metric.ACCURACY))


class Marks:
    """An exam with made-up scores."""

    def __init__(self, old: Sequence[float], alone: Sequence[float]) -> None:
        self.measure = Measure(Metric.EXACT_MATCH, LikeliestChoice(()))
        self.old = AnswerStream(Pair(Any, None), [Example(str(i), "") for i in range(len(old))], LikeliestChoice(()))  # type: ignore[arg-type]
        self._old, self._alone = list(old), list(alone)

    def scores(self, pair: Pair | None, count: int) -> list[float]:
        return (self._old if pair is None else self._alone)[:count]


SOME, MORE, MANY = ([1.0] * right + [0.0] * (60 - right) for right in (10, 12, 40))


def test_an_adapter_that_answers_better_is_not_refused_for_its_loss(home: Home, twin: LoadedBase) -> None:
    """As after training by preferences: references get less likely while answers get better."""
    pair, small = Pair(twin, home.adapter), few(home.splits, 60)
    better: Any = Marks(MANY, SOME)
    assert require_effect(pair, small, better) is None
    unsure: Any = Marks(MORE, SOME)
    with pytest.raises(NoEffect, match=r"token loss .* scrambled .*; ExactMatch 20\.0 %, the base alone 16\.7 %"):
        require_effect(pair, small, unsure)


def test_an_adapter_that_answers_worse_than_its_base_is_refused_whatever_its_loss(home: Home) -> None:
    pair, small = Pair(home.base, home.adapter), few(home.splits, 60)
    worse: Any = Marks(SOME, MANY)
    with pytest.raises(NoEffect, match=r"ExactMatch 16\.7 %, the base alone 66\.7 %"):
        require_effect(pair, small, worse)
    unsure: Any = Marks(SOME, MORE)
    assert require_effect(pair, small, unsure) is not None


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


def test_too_few_examples_tell_nothing(home: Home, twin: LoadedBase) -> None:
    pair, small = Pair(twin, home.adapter), few(home.splits, 7)
    assert require_effect(pair, small, exam(pair, small, Metric.ACCURACY)) is None


def test_unlabelled_data_cannot_tell(home: Home, twin: LoadedBase) -> None:
    unlabelled = replace(home.splits, labelled=False, choices=())
    pair = Pair(twin, home.adapter)
    assert require_effect(pair, unlabelled, exam(pair, unlabelled, Metric.AGREEMENT)) is None


@pytest.mark.parametrize("part", ["train", "search", "stopping", "gate"])
def test_prompts_longer_than_the_model_are_named_with_their_length(home: Home, part: str) -> None:
    splits, longest = few(home.splits, 3), home.base.longest
    fits = " ".join(["g0"] * (longest - 2))
    require_room(home.base, replace(splits, **{part: (Example(fits, " label1"),)}, inputs=(fits,)))
    with pytest.raises(
        BadData, match=rf"{longest} tokens and an end does not fit the base, which reads {longest}: 'g0"
    ):
        require_room(home.base, replace(splits, **{part: (Example(f"{fits} g1", " label1"),)}))
    with pytest.raises(BadData, match="does not fit"):
        require_room(home.base, replace(splits, inputs=(f"{fits} g1 g2",)))
