"""The trie in one pass gives what one pass per choice gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from readapt_runtime.adapt.base import LoadedBase, load_base
from readapt_runtime.adapt.comparison import AnswerCache, AnswerStream, Pair
from readapt_runtime.adapt.data import Example
from readapt_runtime.adapt.forms import GreedyText, LikeliestChoice, ReferenceLoss
from readapt_runtime.adapt.scoring import choice_scores, needs_end, prepare
from readapt_runtime.adapt.tokens import encode, mean_losses
from readapt_runtime.store import Store
from readapt_testing.tiny_llama import Oracle, write_base

PROMPTS = [
    "Query: where is my card?\nIntent:",
    "Q:",
    "Query: please cancel the transfer to my sister at once.\nIntent:",
]
CHOICE_SETS = {
    "single tokens": ["a", "b", "c"],
    "several tokens": [" lost card", " transfer", " loan", " late"],
    "one the beginning of another": [" card", " card payment", " car", " late"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("scoring") / "base", seed=2)


@pytest.fixture(scope="module")
def base(folder: Path) -> LoadedBase:
    return load_base(folder, f"sha256:{'0' * 64}")


def naive(folder: Path, base: LoadedBase, prompt: str, completion: str, end: bool) -> list[float]:
    """Log-likelihood of every token of the completion, one unpadded transformers pass."""
    context = base.tokenizer(prompt).input_ids
    ids = base.tokenizer(prompt + completion).input_ids + ([base.eos] if end else [])
    with torch.no_grad():
        logits = Oracle(folder).model(None)(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return [float(logits[i - 1, ids[i]]) for i in range(len(context), len(ids))]


@pytest.mark.parametrize("choices", CHOICE_SETS.values(), ids=CHOICE_SETS)
def test_scores_equal_the_naive_loop(folder: Path, base: LoadedBase, choices: list[str]) -> None:
    end = choices == CHOICE_SETS["one the beginning of another"]
    assert needs_end(choices) is end
    found = choice_scores(base, prepare(base, PROMPTS, choices))
    for row, prompt in enumerate(PROMPTS):
        logs = [naive(folder, base, prompt, choice, end) for choice in choices]
        expected = torch.tensor([sum(each) / len(each) for each in logs], dtype=torch.float64)
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-4)


def test_choices_of_one_token_add_nothing_to_the_prompt(base: LoadedBase) -> None:
    assert all(q.trie.tokens == () for q in prepare(base, PROMPTS, CHOICE_SETS["single tokens"]))


def test_answer_losses_equal_the_naive_loop_and_include_the_end(folder: Path, base: LoadedBase) -> None:
    examples = [Example(p, c) for p, c in zip(PROMPTS, [" card", " x", " transfer stop"], strict=True)]
    found = mean_losses(base, encode(base, examples))
    for loss, example in zip(found, examples, strict=True):
        logs = naive(folder, base, example.prompt, example.completion, end=True)
        assert float(loss) == pytest.approx(-sum(logs) / len(logs), rel=1e-4)


def test_long_prompts_keep_their_end(base: LoadedBase) -> None:
    long = "x" * 3000 + PROMPTS[0]
    question = prepare(base, [long], [" a b"])[0]
    assert len(question.context) + len(question.trie.tokens) <= base.max_tokens
    row = encode(base, [Example(long, " a b")])[0]
    assert len(row.ids) <= base.max_tokens
    assert row.ids[-5:-1] == tuple(base.tokenizer(" a b").input_ids)


def test_answers_are_asked_once_and_kept_in_the_store(base: LoadedBase, tmp_path: Path) -> None:
    store, digest = Store(tmp_path), f"sha256:{'5' * 64}"
    examples = [Example(prompt, choice) for prompt in PROMPTS for choice in "abc"]
    form = LikeliestChoice(("a", "b", "c"))
    cache = AnswerCache.of(store, digest, base, digest, "gate", form)
    first = AnswerStream(Pair(base, None), examples, form, cache)
    some = first.first(4)
    assert len(cache.load()) == 4
    every = first.all()
    assert every[:4] == some
    assert sum(a == e.completion for a, e in zip(every, examples, strict=True)) == len(PROMPTS)
    asked = AnswerStream(Pair(base, None), examples, Never(), AnswerCache.of(store, digest, base, digest, "gate", form))
    assert asked.all() == every
    for part, other in (("stopping", form), ("gate", ReferenceLoss()), ("gate", GreedyText(8))):
        assert AnswerCache.of(store, digest, base, digest, part, other).load() == ()


class Never:
    """A form that must not be needed."""

    name = "never"

    def ask(self, base: LoadedBase, examples: object) -> list[str]:
        raise AssertionError("asked again")


def test_losses_come_back_from_the_store_bit_for_bit(base: LoadedBase, tmp_path: Path) -> None:
    digest, examples = f"sha256:{'6' * 64}", [Example(prompt, " a card") for prompt in PROMPTS]
    cache = AnswerCache.of(Store(tmp_path), digest, base, digest, "gate", ReferenceLoss())
    found = AnswerStream(Pair(base, None), examples, ReferenceLoss(), cache).all()
    assert all(isinstance(loss, float) for loss in found)
    assert list(cache.load()) == found
