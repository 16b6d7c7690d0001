"""How a candidate is graded, and after how many questions."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from readapt_api.adaptation import Metric
from readapt_runtime.adapt.base import LoadedBase, load_base
from readapt_runtime.adapt.comparison import AnswerStream, Pair
from readapt_runtime.adapt.data import Example
from readapt_runtime.adapt.exam import Exam
from readapt_runtime.adapt.forms import Answer
from readapt_runtime.adapt.measure import Measure
from readapt_testing.tiny_llama import write_base

EXAMPLES = tuple(Example(str(n), " yes") for n in range(320))


class Script:
    """A form that answers the n-th question as written down."""

    name = "script"

    def __init__(self, answers: Sequence[Answer]) -> None:
        self.answers = answers
        self.asked = 0

    def ask(self, _base: LoadedBase, examples: Sequence[Example]) -> list[Answer]:
        self.asked += len(examples)
        return [self.answers[int(e.prompt)] for e in examples]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> LoadedBase:
    folder = tmp_path_factory.mktemp("base")
    write_base(folder)
    return load_base(folder, f"sha256:{'0' * 64}")


def right(share: float, count: int = 320) -> list[Answer]:
    """Evenly spread, so that any beginning has that share too."""
    return [" yes" if int((n + 1) * share) > int(n * share) else " no" for n in range(count)]


def exam(
    base: LoadedBase, old: list[Answer], new: list[Answer], metric: Metric = Metric.ACCURACY
) -> tuple[Exam, Script]:
    form = Script(new)
    stream = AnswerStream(Pair(base, None), EXAMPLES, Script(old))
    return Exam(Measure(metric, form), stream, margin=0.03), form


def test_a_candidate_that_has_clearly_failed_is_asked_no_more(base: LoadedBase) -> None:
    judge, form = exam(base, right(0.9), right(0.25))
    grade = judge.grade(Pair(base, None))
    assert form.asked == 96
    assert grade.failed
    assert not grade.clear
    assert grade.value == pytest.approx(0.25)


def test_one_that_may_be_good_enough_is_asked_everything(base: LoadedBase) -> None:
    judge, form = exam(base, right(0.9), right(0.875))
    grade = judge.grade(Pair(base, None))
    assert form.asked == len(EXAMPLES)
    assert grade.value == pytest.approx(0.875)
    assert grade.gain == pytest.approx(0.875 - judge.target)
    assert not grade.clear


def test_one_is_clear_when_it_is_better_by_more_than_a_standard_error(base: LoadedBase) -> None:
    old = right(0.5)
    better = [" yes" if n % 16 == 0 else answer for n, answer in enumerate(old)]
    judge, _ = exam(base, old, better)
    grade = judge.grade(Pair(base, None))
    assert grade.gain == pytest.approx(sum(b != o for b, o in zip(better, old, strict=True)) / 320)
    assert grade.clear
    same, _ = exam(base, old, old)
    assert not same.grade(Pair(base, None)).clear


def test_agreement_is_graded_against_half_of_what_is_allowed(base: LoadedBase) -> None:
    old = right(0.5)
    differs = [answer if n % 100 else " other" for n, answer in enumerate(old)]
    judge, _ = exam(base, old, differs, Metric.AGREEMENT)
    grade = judge.grade(Pair(base, None))
    assert judge.target == pytest.approx(0.985)
    assert grade.value == pytest.approx(316 / 320)
    assert grade.gain == pytest.approx(316 / 320 - 0.985)
