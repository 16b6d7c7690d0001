"""The judge of the demo: what belongs to a set passes, each forgery is one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from readapt_demo.judge import NEAR_TIE, Greedy, Pair, is_telling, mixed_sets
from readapt_demo.traffic import Answer

PAIRS: Mapping[str, Sequence[Pair]] = {
    "base": (Pair("old", Path("v1")), Pair("new", Path("v2"))),
    "parcels": (
        Pair("old", Path("v1"), Path("a"), "sha256:aa"),
        Pair("new", Path("v2"), Path("b"), "sha256:bb"),
    ),
}
TEXTS = {
    "apart": (Greedy("left", 0.5), Greedy("right", 0.5)),
    "alike": (Greedy("same", 0.5), Greedy("same", 0.5)),
    "nearly tied": (Greedy("left", 0.5), Greedy("right", NEAR_TIE / 2)),
}
EXPECTED = {
    (pair.revision, model, prompt): text
    for model, pairs in PAIRS.items()
    for prompt, texts in TEXTS.items()
    for pair, text in zip(pairs, texts, strict=True)
}
OLD = Answer("parcels", "apart", "kept", 200, text="left", revision="old", adapter="parcels@sha256:aa")
NEW = Answer("parcels", "apart", "new", 200, text="right", revision="new", adapter="parcels@sha256:bb")
OF_BASE = Answer("base", "apart", "new", 200, text="left", revision="old")
RIGHT = (OLD, NEW, OF_BASE)


@pytest.mark.parametrize(
    ("forged", "says"),
    [
        (replace(OLD, text="neither"), "answered 'neither', expected 'left'"),
        (replace(OLD, text="right"), "answered 'right', expected 'left'"),
        (replace(OF_BASE, text="right"), "answered 'right', expected 'left'"),
        (replace(OLD, adapter="parcels@sha256:bb"), "its variant is 'parcels@sha256:aa'"),
        (replace(NEW, adapter=""), "says '', its variant is 'parcels@sha256:bb'"),
        (replace(OF_BASE, adapter="parcels@sha256:aa"), "its variant is ''"),
        (replace(NEW, prompt="alike", text="same", adapter="parcels@sha256:cc"), "its variant is 'parcels@sha256:bb'"),
        (replace(NEW, revision="never"), "unknown revision 'never'"),
        (replace(OF_BASE, revision=""), "unknown revision ''"),
    ],
    ids=[
        "a text of neither set",
        "a text of the other set",
        "a text of the other base",
        "the other set's digest",
        "no digest",
        "a digest for the base",
        "an unknown digest where texts are alike",
        "an unknown revision",
        "no revision",
    ],
)
def test_a_forged_answer_is_one_line(forged: Answer, says: str) -> None:
    (line,) = mixed_sets([OLD, forged, *RIGHT], PAIRS, EXPECTED)
    assert says in line
    assert line.startswith(f"{forged.model}, {forged.prompt!r} ({forged.connection} connection)")


def test_answers_of_both_sets_are_right() -> None:
    assert mixed_sets(RIGHT, PAIRS, EXPECTED) == []


@pytest.mark.parametrize("prompt", ["alike", "nearly tied"])
def test_a_text_that_cannot_tell_is_not_judged(prompt: str) -> None:
    answer = replace(OLD, prompt=prompt, text="neither")
    assert not is_telling(answer, PAIRS, EXPECTED)
    assert mixed_sets([answer], PAIRS, EXPECTED) == []
    assert is_telling(OLD, PAIRS, EXPECTED)


def test_a_request_that_failed_is_of_no_set() -> None:
    assert mixed_sets([Answer("parcels", "apart", "new", 503, error="draining")], PAIRS, EXPECTED) == []
