"""Trains a LoRA from scratch with the tuning that repairs use: no anchor, no replay, early stopping by accuracy.

In: a base, examples and a recipe. Out: the checkpoint that is best on the validation examples. Next: it is scored and
published; there is nothing that it could be compared with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch

from readapt_api.adaptation import Metric
from readapt_api.errors import Terminal
from readapt_api.jobs import TrainRequest
from readapt_runtime.adapt.base import LoadedBase
from readapt_runtime.adapt.comparison import AnswerStream, Pair
from readapt_runtime.adapt.data import Example, Splits
from readapt_runtime.adapt.item import seed_of
from readapt_runtime.adapt.journal import Journal
from readapt_runtime.adapt.measure import Measure, mean
from readapt_runtime.adapt.suitability import require_room
from readapt_runtime.adapt.tokens import encode
from readapt_runtime.adapt.tuning import Evaluation, Evenly, Lessons, Tuned, tune
from readapt_runtime.lora_format import LoraAdapter, LoraModule, Shape
from readapt_runtime.progress import Log


class NothingToTrain(Terminal):
    """The target modules name no linear module of the base."""


class NothingLearned(Terminal):
    """No checkpoint was better than the base alone."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train."""

    rank: int
    alpha: int
    targets: tuple[str, ...]
    """Suffixes of module names; empty: all linear modules of the decoder layers."""
    max_steps: int
    learning_rate: float
    batch_size: int
    metric: Metric
    seed: int


def recipe_of(request: TrainRequest) -> Recipe:
    return Recipe(
        rank=request.rank,
        alpha=request.alpha,
        targets=request.target_modules,
        max_steps=request.max_steps,
        learning_rate=float(request.learning_rate),
        batch_size=request.batch_size,
        metric=request.metric,
        seed=seed_of(request.input_hash),
    )


def train(
    base: LoadedBase, shapes: Mapping[str, Shape], splits: Splits, recipe: Recipe, journal: Journal, log: Log
) -> Tuned:
    """The best checkpoint and how it went; goes on where an earlier run with this ``journal`` was.

    Raises NothingToTrain, NothingLearned, Diverged, BadData.
    """
    splits.require_tuning()
    start = new_adapter(targeted(shapes, recipe.targets), recipe.rank, recipe.alpha)
    examples = (*splits.search, *splits.stopping)
    measure = Measure.of(recipe.metric, splits, base)
    require_room(base, splits)

    def evaluate(step: int, adapter: LoraAdapter | None, _before: Sequence[Evaluation] = ()) -> Evaluation:
        score = grade(measure, Pair(base, adapter), examples)
        log.progress(step / recipe.max_steps, "training")
        log.info("checkpoint", step=step, score=score)
        return Evaluation(step, score, None, feasible=True, ready=False)

    tuning = Evenly(
        max_steps=recipe.max_steps,
        learning_rate=recipe.learning_rate,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        replay=0.0,
        strong=0.0,
        weak=0.0,
    )
    lessons = Lessons(encode(base, splits.train))
    tuned = tune(base, start, evaluate(0, None), lessons, tuning, evaluate, journal)
    if tuned.best.step == 0:
        reached = recipe.metric.unit.score(abs(tuned.best.score))
        raise NothingLearned(
            f"up to step {tuned.curve[-1].step} no checkpoint is better on the validation examples than the base alone "
            f"({recipe.metric} {reached}); try another learning rate, or more steps"
        )
    return tuned


def evidence_of(tuned: Tuned, recipe: Recipe) -> dict[str, object]:
    """What a report shows of a training."""
    return {
        "seed": recipe.seed,
        "curve": [asdict(e) for e in tuned.curve],
        "trainLosses": list(tuned.train_losses),
        "best": tuned.best.step,
    }


def targeted(shapes: Mapping[str, Shape], targets: Sequence[str]) -> dict[str, Shape]:
    """The modules that the suffixes name; all for none. Raises NothingToTrain."""
    found = {n: s for n, s in shapes.items() if not targets or any(n == t or n.endswith(f".{t}") for t in targets)}
    if not found:
        raise NothingToTrain(f"target modules {', '.join(targets)} name no linear module of the base")
    return found


def new_adapter(shapes: Mapping[str, Shape], rank: int, alpha: float) -> LoraAdapter:
    """A LoRA without effect; whoever trains it gives its rows a random A (``trainable``)."""
    return LoraAdapter(
        {name: LoraModule(name, *_zeros(shape, rank), scale=alpha / rank) for name, shape in shapes.items()}
    )


def _zeros(shape: Shape, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(rank, shape.into), torch.zeros(shape.out, rank)


def grade(measure: Measure, pair: Pair, examples: Sequence[Example]) -> float:
    """Mean score, negated where lower is better."""
    answers = AnswerStream(pair, examples, measure.form).all()
    return measure.metric.gain(mean(measure.scores(examples, answers, answers)), 0.0)
