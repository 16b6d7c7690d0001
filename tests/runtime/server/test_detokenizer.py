"""Streams of text: what is shown is final, and nothing is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from readapt_runtime.server.detokenizer import Detokenizer, StopFinder
from readapt_testing.tiny_llama import byte_tokenizer

TOKENIZER = byte_tokenizer()


def _decode(ids: object) -> str:
    text: str = TOKENIZER.decode(ids, skip_special_tokens=True)
    return text


@given(st.text(max_size=30))
def test_text_arrives_whole_and_never_with_half_a_character(text: str) -> None:
    detokenizer = Detokenizer(_decode)
    pieces = [detokenizer.push(i) for i in TOKENIZER(text)["input_ids"]]
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) + detokenizer.flush() == text


@given(st.lists(st.integers(0, 255), max_size=30))
def test_any_tokens_add_up_to_their_decoding(ids: list[int]) -> None:
    detokenizer = Detokenizer(_decode)
    text = "".join(detokenizer.push(i) for i in ids) + detokenizer.flush()
    assert text == _decode(ids)


@given(st.text("ab", max_size=20), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.data())
def test_stops_cut_the_text_wherever_the_pieces_break(text: str, stops: list[str], data: st.DataObject) -> None:
    finder, shown, rest = StopFinder(stops), "", text
    while rest and not finder.found:
        size = data.draw(st.integers(1, len(rest)))
        shown += finder.push(rest[:size])
        rest = rest[size:]
    if not finder.found:
        shown += finder.flush()
    starts = {text.find(s) for s in stops if s in text}
    assert finder.found == bool(starts)
    if not starts:
        assert shown == text
    else:
        # piece by piece, the stop that is complete first ends the text; in one piece, the one that begins first
        assert shown in {text[:start] for start in starts}
        assert not any(s in shown for s in stops)


@pytest.mark.parametrize(("text", "stop", "shown"), [("abc", "abd", ""), ("xab", "abd", "x"), ("xyz", "abd", "xyz")])
def test_what_could_begin_a_stop_is_held_back(text: str, stop: str, shown: str) -> None:
    finder = StopFinder([stop])
    assert finder.push(text) == shown or shown == ""
    assert len(shown) <= len(text)
