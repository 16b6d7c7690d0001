"""What each metric makes of answers, and what it asks for."""

from __future__ import annotations

from pathlib import Path

import pytest

from readapt_api.adaptation import Metric
from readapt_runtime.adapt import gate
from readapt_runtime.adapt.base import LoadedBase, load_base
from readapt_runtime.adapt.data import Example, split
from readapt_runtime.adapt.forms import GreedyText, LikeliestChoice, ReferenceLoss, form_of
from readapt_runtime.adapt.generation import complete
from readapt_runtime.adapt.measure import LOSS_CAP, Measure, f1, plain
from readapt_runtime.adapt.tokens import joint_ids
from readapt_runtime.lora_format import base_shapes, read_adapter
from readapt_testing.tiny_llama import Oracle, write_adapter_folder, write_base

# Worked by hand after SQuAD's definition: lower case, no punctuation, no articles, multisets of words.
F1_ROWS = [
    ("The cat sat.", "a cat sat down", 0.8),
    ("cat", "cat", 1.0),
    ("dog", "cat", 0.0),
    ("", "", 1.0),
    ("the", "a", 1.0),
    ("", "cat", 0.0),
    ("to be or not to be", "to be", 2 * 2 / (6 + 2)),
    ("U.S.A.", "usa", 1.0),
]


@pytest.mark.parametrize(("answer", "reference", "expected"), F1_ROWS)
def test_f1_is_that_of_squad(answer: str, reference: str, expected: float) -> None:
    assert f1(answer, reference) == pytest.approx(expected)
    assert f1(reference, answer) == pytest.approx(expected)


def test_an_exact_match_forgives_white_space_and_composition_alone() -> None:
    assert plain("  caf\u0065\u0301 \n au  lait ") == plain("café au lait")
    assert plain("Yes") != plain("yes")
    assert plain("3.14") != plain("314")


EXAMPLES = [Example("p", " yes"), Example("q", " no")]


@pytest.mark.parametrize(
    ("metric", "old", "new", "scores", "kind"),
    [
        (Metric.ACCURACY, [" yes", " yes"], [" no", " no"], [0.0, 1.0], gate.Counts(1, 1, 0)),
        (Metric.EXACT_MATCH, ["yes", "no"], [" yes ", " No"], [1.0, 0.0], gate.Counts(0, 1, 1)),
        (Metric.F1, ["yes", "no"], ["yes yes", "NO!"], [2 / 3, 1.0], gate.Gains([2 / 3 - 1, 0.0], 1.0)),
        (Metric.AGREEMENT, ["a b", "c"], ["a  b", "d"], [1.0, 0.0], gate.Agreements(1, 1)),
        (Metric.TOKEN_LOSS, [0.5, 9.0], [0.75, 7.0], [0.75, LOSS_CAP], gate.Gains([-0.25, 0.0], LOSS_CAP)),
    ],
    ids=lambda value: value.value if isinstance(value, Metric) else "",
)
def test_answers_become_scores_and_scores_evidence(
    metric: Metric, old: list[str | float], new: list[str | float], scores: list[float], kind: gate.Evidence
) -> None:
    measure = Measure(metric, ReferenceLoss())
    found = measure.scores(EXAMPLES, new, old)
    assert found == pytest.approx(scores)
    assert measure.evidence(measure.scores(EXAMPLES, old, old), found) == kind


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("answers")
    write_base(root / "base", seed=3)
    write_adapter_folder(root / "adapter", root / "base", rank=4, seed=4)
    return root


@pytest.fixture(scope="module")
def base(folder: Path) -> LoadedBase:
    return load_base(folder / "base", f"sha256:{'0' * 64}")


LABELLED = split(
    [Example(f"t{i}", (" yes", " no")[i % 2]) for i in range(40)],
    [Example(f"v{i}", (" yes", " no")[i % 2]) for i in range(40)],
    [],
)
FREE = split(
    [Example(f"t{i}", f" answer {i}") for i in range(40)],
    [Example(f"v{i}", f" other {i}") for i in range(40)],
    [],
    metric=Metric.F1,
)
INPUTS = split([], [], [], [f"i{i}" for i in range(60)], Metric.AGREEMENT)


def test_the_data_say_what_a_metric_asks_for(base: LoadedBase) -> None:
    assert form_of(Metric.ACCURACY, LABELLED, base) == LikeliestChoice((" no", " yes"))
    assert form_of(Metric.AGREEMENT, LABELLED, base) == LikeliestChoice((" no", " yes"))
    assert form_of(Metric.TOKEN_LOSS, LABELLED, base) == ReferenceLoss()
    longest = len(joint_ids(base, [" answer 10"])[0]) + 1
    assert form_of(Metric.F1, FREE, base) == form_of(Metric.AGREEMENT, FREE, base) == GreedyText(longest)
    assert form_of(Metric.AGREEMENT, INPUTS, base) == GreedyText(64)


def test_completions_are_those_of_transformers_and_peft(folder: Path, base: LoadedBase) -> None:
    from readapt_runtime.adapt.comparison import Pair

    prompts = ["Q:", "Where is my card?", "x" * 70, "a b c d e"]
    adapter = read_adapter(folder / "adapter", base_shapes(folder / "base"))
    for pair, oracle in ((Pair(base, None), None), (Pair(base, adapter), folder / "adapter")):
        answers = pair.answer(GreedyText(12), [Example(prompt, "") for prompt in prompts])
        for prompt, answer in zip(prompts, answers, strict=True):
            ids = base.tokenizer(prompt).input_ids
            expected = Oracle(folder / "base").greedy(oracle, ids, 12)
            ended = expected[: expected.index(base.eos)] if base.eos in expected else expected
            whole = base.tokenizer.decode([*ids, *ended], skip_special_tokens=True)
            assert prompt + str(answer) == whole


def test_a_prompt_that_leaves_no_room_keeps_its_end(base: LoadedBase) -> None:
    long = "y" * (base.max_tokens + 50)
    assert complete(base, [long], 8) == complete(base, [long[-(base.max_tokens - 8) :]], 8)
