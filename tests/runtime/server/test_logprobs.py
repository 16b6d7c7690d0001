"""Log-probabilities as the openai client reads them, against transformers' log-softmax in double precision."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import openai
import pytest
import torch
from transformers import AutoTokenizer

from readapt_runtime.server.token_names import TokenNames
from readapt_testing.tiny_engine import Tiny

PROMPT = "Wie heißt die Hauptstadt?"
TOLERANCE = 2e-4
COUNT = 12
MESSAGES: list[Any] = [{"role": "user", "content": "ß"}]


def _expected(tiny: Tiny, name: str | None, prompt: list[int], top: int) -> list[tuple[float, list[float]]]:
    """Per greedy token its log-probability and the largest ones of its place, by transformers and PEFT."""
    model, folder = tiny.oracle.model(tiny.folder(name)), tiny.folder(name)
    tokens = tiny.oracle.greedy(folder, prompt, COUNT)
    with torch.no_grad():
        logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    log_probs = logits.double().log_softmax(-1)
    return [(float(row[token]), row.topk(top).values.tolist()) for row, token in zip(log_probs, tokens, strict=True)]


def _tokenizer(tiny: Tiny) -> Any:
    return AutoTokenizer.from_pretrained(tiny.base)


def _is_text(token: str) -> bool:
    return not token.startswith(("bytes:", "token_id:", "</s>"))


@pytest.mark.parametrize("name", [None, "r8"], ids=str)
@pytest.mark.parametrize("top", [0, 5])
def test_completions_report_the_models_log_probabilities(
    client: openai.OpenAI, tiny: Tiny, name: str | None, top: int
) -> None:
    answer = client.completions.create(
        model=name or "tiny", prompt=PROMPT, temperature=0, max_tokens=COUNT, logprobs=top
    )
    expected = _expected(tiny, name, _tokenizer(tiny)(PROMPT)["input_ids"], max(top, 1))
    scores = answer.choices[0].logprobs
    assert scores is not None
    assert scores.tokens is not None
    assert answer.usage is not None
    assert len(scores.tokens) == answer.usage.completion_tokens
    assert scores.token_logprobs == pytest.approx([own for own, _ in expected], abs=TOLERANCE)
    for token, found, (_, wanted) in zip(scores.tokens, scores.top_logprobs or [], expected, strict=True):
        assert max(found, key=lambda k: found[k]) == token, "greedy takes the likeliest"
        assert sorted(found.values(), reverse=True) == pytest.approx(wanted, abs=TOLERANCE)


def test_offsets_are_places_in_the_text(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="r4", prompt="x", temperature=0, max_tokens=40, logprobs=0)
    choice = answer.choices[0]
    assert choice.logprobs is not None
    places = list(zip(choice.logprobs.tokens or [], choice.logprobs.text_offset or [], strict=True))
    assert [at for _, at in places] == sorted(at for _, at in places)
    whole = [now for before, now in pairwise(places) if _is_text(before[0]) and _is_text(now[0])]
    assert whole
    shown = [(choice.text[at : at + len(token)], at) for token, at in whole]
    assert shown == whole


@pytest.mark.parametrize("top", [None, 0, 20])
def test_chat_reports_the_models_log_probabilities(client: openai.OpenAI, tiny: Tiny, top: int | None) -> None:
    answer = client.chat.completions.create(
        model="r64",
        messages=MESSAGES,
        temperature=0,
        max_tokens=COUNT,
        logprobs=True,
        top_logprobs=openai.omit if top is None else top,
    )
    prompt = _tokenizer(tiny).apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    scores = answer.choices[0].logprobs
    assert scores is not None
    assert scores.content is not None
    for entry, (own, wanted) in zip(scores.content, _expected(tiny, "r64", prompt, top or 1), strict=True):
        assert entry.logprob == pytest.approx(own, abs=TOLERANCE)
        assert [t.logprob for t in entry.top_logprobs] == pytest.approx(wanted if top else [], abs=TOLERANCE)
        assert not top or entry.top_logprobs[0].token == entry.token
    raw = b"".join(bytes(e.bytes or []) for e in scores.content)
    assert raw.removesuffix(b"</s>").decode(errors="replace") == answer.choices[0].message.content


def test_temperature_and_top_p_do_not_change_what_is_reported(client: openai.OpenAI) -> None:
    def first(**sampling: float) -> Any:
        answer = client.chat.completions.create(
            model="r8", messages=MESSAGES, max_tokens=1, logprobs=True, top_logprobs=20, seed=4, **sampling
        )
        assert answer.choices[0].logprobs is not None
        assert answer.choices[0].logprobs.content is not None
        return answer.choices[0].logprobs.content[0]

    greedy, random = first(temperature=0), first(temperature=2, top_p=0.999)
    assert [(t.token, t.logprob) for t in random.top_logprobs] == [(t.token, t.logprob) for t in greedy.top_logprobs]
    assert random.token != greedy.token, "the seed draws another token"


@pytest.mark.parametrize("n", [1, 2])
def test_streamed_scores_add_up_to_the_whole_answers(client: openai.OpenAI, n: int) -> None:
    arguments: dict[str, Any] = {"model": "r8", "temperature": 0.8, "seed": 2, "max_tokens": 20, "n": n}
    whole = client.completions.create(prompt=PROMPT, logprobs=2, **arguments)
    found: list[dict[str, list[Any]]] = [{} for _ in range(n)]
    for chunk in client.completions.create(prompt=PROMPT, logprobs=2, stream=True, **arguments):
        for choice in chunk.choices:
            for field, values in (choice.logprobs.model_dump() if choice.logprobs else {}).items():
                found[choice.index].setdefault(field, []).extend(values)
    assert found == [c.logprobs.model_dump() for c in whole.choices if c.logprobs]

    chat = client.chat.completions.create(messages=MESSAGES, logprobs=True, top_logprobs=2, **arguments)
    entries: list[list[Any]] = [[] for _ in range(n)]
    for part in client.chat.completions.create(
        messages=MESSAGES, logprobs=True, top_logprobs=2, stream=True, **arguments
    ):
        for piece in part.choices:
            entries[piece.index] += (piece.logprobs and piece.logprobs.content) or []
    assert entries == [c.logprobs.content for c in chat.choices if c.logprobs]


def test_a_stop_string_leaves_one_entry_per_counted_token(client: openai.OpenAI) -> None:
    full = client.completions.create(model="r4", prompt=PROMPT, temperature=0, max_tokens=24).choices[0].text
    cut = client.completions.create(model="r4", prompt=PROMPT, temperature=0, max_tokens=24, stop=full[5:8], logprobs=0)
    assert cut.usage is not None
    assert cut.choices[0].logprobs is not None
    assert len(cut.choices[0].logprobs.tokens or []) == cut.usage.completion_tokens


def test_who_did_not_ask_gets_none_beside_one_who_did(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="r8", prompt=["a", "b"], max_tokens=3)
    assert [c.logprobs for c in answer.choices] == [None, None]
    chat = client.chat.completions.create(model="r8", messages=MESSAGES, max_tokens=3, logprobs=False)
    assert chat.choices[0].logprobs is None


def test_bytes_and_names_are_those_of_the_tokens(tiny: Tiny) -> None:
    names, tokenizer = TokenNames(_tokenizer(tiny)), _tokenizer(tiny)
    text = " aß€😀\n"
    ids = tokenizer(text)["input_ids"]
    assert [names.bytes_of(i) for i in ids] == [bytes([b]) for b in text.encode()]
    assert [names.name(i) for i in ids[:3]] == [" ", "a", "bytes:\\xc3"]
    assert (names.name(256), names.name(258), names.bytes_of(258)) == ("</s>", "token_id:258", b"")
