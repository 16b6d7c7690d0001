"""Task after task on a real, small base: the function never jumps, only what may be learned is learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from readapt_runtime.adapt.base import LoadedBase
from readapt_runtime.adapt.data import Splits
from readapt_runtime.adapt.errors import Diverged
from readapt_runtime.adapt.factors import attached, side_factors
from readapt_runtime.continual.blocks import Learned
from readapt_runtime.continual.freezing import Reduction, freeze
from readapt_runtime.continual.learning import Course, Pupil, descend
from readapt_runtime.continual.losses import ChoiceLoss
from readapt_runtime.continual.sequence import Task, forgetting, journal_of, learn_task
from readapt_runtime.examples import BadData
from readapt_runtime.lora_format import LoraAdapter, Shape
from readapt_runtime.store import Store
from readapt_runtime.training.training import new_adapter

FIRST, SECOND = range(4), range(4, 8)
QUICK = Course(max_steps=12, learning_rate=3e-3, batch_size=16, seed=0)


class Quiet:
    """A log nobody reads."""

    def info(self, event: str, **fields: object) -> None: ...

    def warning(self, event: str, **fields: object) -> None: ...

    def progress(self, done: float, doing: str) -> None: ...


def learn_one(base: LoadedBase, shapes: dict[str, Shape], learned: Learned, splits: Splits) -> Pupil:
    loss = ChoiceLoss(base, splits.train, splits.choices)
    pupil = Pupil(base, learned, new_adapter(shapes, 4, 16), seed=3)
    list(descend(pupil, loss, loss.lengths, QUICK))
    return pupil


@torch.inference_mode()
def logits(base: LoadedBase) -> Tensor:
    tokens = torch.arange(2, 34).view(2, 16)
    found: Tensor = base.model(input_ids=tokens, use_cache=False).logits.float()
    return found


@pytest.fixture(scope="module")
def after_one(
    base: LoadedBase, shapes: dict[str, Shape], task_splits: Callable[[range], Splits]
) -> tuple[Learned, Tensor]:
    """The first task, frozen, and what the model answered when it was learned."""
    pupil = learn_one(base, shapes, Learned(), task_splits(FIRST))
    with pupil.attached():
        answers = logits(base)
    return freeze(*pupil.outcome(), "first", Reduction()).learned, answers


def test_the_function_does_not_jump_when_a_task_is_frozen(base: LoadedBase, after_one: tuple[Learned, Tensor]) -> None:
    learned, before = after_one
    with attached(base.model, side_factors(learned.adapter, base)):
        torch.testing.assert_close(logits(base), before, rtol=1e-4, atol=1e-4)
    assert float((logits(base) - before).abs().max()) > 0.1, "the task changed nothing"


def test_the_next_task_starts_where_the_last_one_ended(
    base: LoadedBase, shapes: dict[str, Shape], after_one: tuple[Learned, Tensor]
) -> None:
    learned, before = after_one
    with Pupil(base, learned, new_adapter(shapes, 4, 16), seed=7).attached():
        torch.testing.assert_close(logits(base), before, rtol=1e-4, atol=1e-4)


def test_later_tasks_change_magnitudes_and_leave_directions_alone(
    base: LoadedBase,
    shapes: dict[str, Shape],
    after_one: tuple[Learned, Tensor],
    task_splits: Callable[[range], Splits],
) -> None:
    (block,) = after_one[0].blocks
    pupil = learn_one(base, shapes, after_one[0], task_splits(SECOND))
    with pupil.attached():
        before = logits(base)
    first, second = freeze(*pupil.outcome(), "second", Reduction()).learned.blocks
    for name, direction in block.directions.items():
        assert torch.equal(first.directions[name].left, direction.left)
        assert torch.equal(first.directions[name].right, direction.right)
    moved = [abs(first.magnitudes[n] / m - 1) for n, m in block.magnitudes.items()]
    assert min(moved) > 1e-3
    assert second.task == "second"
    with attached(base.model, side_factors(Learned((first, second)).adapter, base)):
        torch.testing.assert_close(logits(base), before, rtol=1e-4, atol=1e-4)


def test_the_loss_is_that_of_choosing_among_the_tasks_own_answers(
    base: LoadedBase, task_splits: Callable[[range], Splits]
) -> None:
    splits = task_splits(FIRST)
    loss = ChoiceLoss(base, splits.train, splits.choices)
    labels = [base.tokenizer(choice).input_ids[0] for choice in splits.choices]
    expected = []
    for example in splits.train[:5]:
        ids = torch.tensor([base.tokenizer(example.prompt).input_ids])
        with torch.inference_mode():
            found = base.model(input_ids=ids).logits[0, -1, labels].float()
        expected.append(F.cross_entropy(found, torch.tensor(splits.choices.index(example.completion))))
    assert float(loss(range(5))) == pytest.approx(float(torch.stack(expected).mean()), rel=1e-4)


def test_earlier_answers_are_kept_as_they_were_judged_before(
    base: LoadedBase,
    shapes: dict[str, Shape],
    after_one: tuple[Learned, Tensor],
    task_splits: Callable[[range], Splits],
) -> None:
    """The second term is the dense divergence between before and now; before a step is taken it is zero."""
    earlier, splits = task_splits(FIRST).choices, task_splits(SECOND)
    pupil = Pupil(base, after_one[0], new_adapter(shapes, 4, 16), seed=3)
    with pupil.attached():
        both = ChoiceLoss(base, splits.train[:6], splits.choices, earlier, keeping=2.0)
        alone = ChoiceLoss(base, splits.train[:6], splits.choices)
        before = judged(base, splits, earlier)
        assert float(both(range(6)).detach()) == pytest.approx(float(alone(range(6)).detach()), rel=1e-5)
    with torch.no_grad():
        for side in pupil.current.values():
            side.b.normal_(std=0.05, generator=torch.Generator().manual_seed(1))
    with pupil.attached():
        now = judged(base, splits, earlier)
        divergence = float((before.exp() * (before - now)).sum(1).mean())
        assert divergence > 1e-3
        gap = float(both(range(6)).detach()) - float(alone(range(6)).detach())
    assert gap == pytest.approx(2.0 * divergence, rel=1e-3)


@torch.inference_mode()
def judged(base: LoadedBase, splits: Splits, answers: Sequence[str]) -> Tensor:
    """[6, answers] log-probabilities among ``answers``, one prompt at a time."""
    labels = [base.tokenizer(answer).input_ids[0] for answer in answers]
    prompts = [torch.tensor([base.tokenizer(e.prompt).input_ids]) for e in splits.train[:6]]
    rows = [base.model(input_ids=ids).logits[0, -1, labels].float().log_softmax(0) for ids in prompts]
    return torch.stack(rows)


def test_a_task_with_one_answer_is_refused(base: LoadedBase, task_splits: Callable[[range], Splits]) -> None:
    splits = task_splits(range(1))
    with pytest.raises(BadData, match="1 distinct completions: there is nothing to choose between"):
        ChoiceLoss(base, splits.train, splits.choices)


def test_a_task_is_learned_and_an_earlier_one_remembered(
    base: LoadedBase, shapes: dict[str, Shape], task_splits: Callable[[range], Splits], tmp_path: Path
) -> None:
    course = Course(max_steps=30, learning_rate=4e-3, batch_size=16, seed=0)
    tasks = [Task(name, task_splits(labels), 4, course) for name, labels in (("a", FIRST), ("b", SECOND))]
    learned, lessons = Learned(), []
    for n in (1, 2):
        journal = journal_of(Store(tmp_path), f"sha256:{n:064}", base, learned, Quiet())
        learned, lesson = learn_task(base, shapes, learned, tasks[:n], journal, Quiet())
        lessons.append(lesson)
    first, second = lessons
    assert first.accuracies[0] > 0.5, "chance is 0.25"
    assert sum(second.accuracies) / 2 > 0.4, "chance is 0.125"
    assert forgetting((first, second)) == pytest.approx(first.accuracies[0] - second.accuracies[0])
    assert len(learned.blocks) == 2


def test_a_loss_that_is_not_finite_ends_the_task(base: LoadedBase, shapes: dict[str, Shape]) -> None:
    def broken(batch: Sequence[int]) -> Tensor:
        return torch.tensor(float("nan"), requires_grad=True)

    pupil = Pupil(base, Learned(), new_adapter(shapes, 2, 16), seed=0)
    with pytest.raises(Diverged, match="at step 1 is nan"):
        next(descend(pupil, broken, [4, 4], QUICK))


def test_equal_seeds_give_equal_weights(
    base: LoadedBase, shapes: dict[str, Shape], task_splits: Callable[[range], Splits]
) -> None:
    def once() -> LoraAdapter:
        return learn_one(base, shapes, Learned(), task_splits(FIRST)).outcome()[1]

    one, two = once(), once()
    assert all(
        torch.equal(m.a, two.modules[n].a) and torch.equal(m.b, two.modules[n].b) for n, m in one.modules.items()
    )
