"""The OpenAI API as its own client sees it, on a real listener."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest
from transformers import AutoTokenizer

from readapt_cluster.waiting import until
from readapt_runtime.server.pieces import Choice, Piece
from readapt_testing.serving import Running
from readapt_testing.tiny_engine import Tiny

PROMPT = "Wie heißt die Hauptstadt?"


def _expected_text(tiny: Tiny, name: str | None, prompt: str, count: int) -> str:
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny.base)
    tokens = tiny.oracle.greedy(tiny.folder(name), tokenizer(prompt)["input_ids"], count)
    text: str = tokenizer.decode(tokens, skip_special_tokens=True)
    return text


@pytest.mark.parametrize("name", [None, "r4", "r8", "r64"], ids=str)
def test_a_greedy_completion_is_the_oracles(client: openai.OpenAI, tiny: Tiny, name: str | None) -> None:
    answer = client.completions.create(model=name or "tiny", prompt=PROMPT, temperature=0, max_tokens=12)
    assert answer.choices[0].text == _expected_text(tiny, name, PROMPT, 12)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(PROMPT.encode())
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_text_and_token_ids_are_the_same_prompt(client: openai.OpenAI, tiny: Tiny) -> None:
    ids = AutoTokenizer.from_pretrained(tiny.base)(PROMPT)["input_ids"]
    prompts: list[Any] = [PROMPT, ids, [PROMPT], [ids]]
    texts = [
        client.completions.create(model="r8", prompt=p, temperature=0, max_tokens=6).choices[0].text for p in prompts
    ]
    assert len(set(texts)) == 1


def test_several_prompts_and_choices_come_in_order(client: openai.OpenAI, tiny: Tiny) -> None:
    answer = client.completions.create(model="r8", prompt=["a", "bc"], n=2, temperature=0, max_tokens=5)
    expected = [_expected_text(tiny, "r8", p, 5) for p in ("a", "bc")]
    assert [c.text for c in answer.choices] == [expected[0], expected[0], expected[1], expected[1]]
    assert [c.index for c in answer.choices] == [0, 1, 2, 3]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 3


@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_adds_up_to_the_whole_answer(client: openai.OpenAI, n: int) -> None:
    arguments = {"model": "r8", "prompt": PROMPT, "temperature": 0.9, "seed": 7, "max_tokens": 20, "n": n}
    whole = client.completions.create(**arguments)  # type: ignore[call-overload]
    texts, finishes = [""] * n, [None] * n
    usage = None
    stream = client.completions.create(**arguments, stream=True, stream_options={"include_usage": True})  # type: ignore[call-overload]
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            finishes[choice.index] = choice.finish_reason
    assert texts == [c.text for c in whole.choices]
    assert finishes == [c.finish_reason for c in whole.choices]
    assert usage == whole.usage
    assert len(set(texts)) == n


def test_chat_goes_through_the_template(client: openai.OpenAI, tiny: Tiny) -> None:
    answer = client.chat.completions.create(
        model="r64",
        messages=[
            {"role": "system", "content": "short"},
            {"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]},
        ],
        temperature=0,
        max_completion_tokens=9,
    )
    expected = _expected_text(tiny, "r64", "<system>short</s><user>hi</s><assistant>", 9)
    # the template's </s> is the end-of-sequence token, four characters are not
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny.base)
    messages = [{"role": "system", "content": "short"}, {"role": "user", "content": "hi"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    tokens = tiny.oracle.greedy(tiny.adapters["r64"], ids, 9)
    assert ids == tokenizer("<system>short</s><user>hi</s><assistant>")["input_ids"]
    assert answer.choices[0].message.content == tokenizer.decode(tokens, skip_special_tokens=True) == expected
    assert answer.choices[0].message.role == "assistant"


def test_a_chat_stream_adds_up(client: openai.OpenAI) -> None:
    arguments = {"model": "r8", "messages": [{"role": "user", "content": "ß"}], "temperature": 0, "max_tokens": 9}
    whole = client.chat.completions.create(**arguments)  # type: ignore[call-overload]
    chunks = list(client.chat.completions.create(**arguments, stream=True))  # type: ignore[call-overload]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_a_stop_string_ends_the_text_before_it(client: openai.OpenAI) -> None:
    full = client.completions.create(model="r4", prompt=PROMPT, temperature=0, max_tokens=24).choices[0].text
    stop = full[5:8]
    cut = client.completions.create(model="r4", prompt=PROMPT, temperature=0, max_tokens=24, stop=["never", stop])
    assert cut.choices[0].text == full[: full.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    stream = client.completions.create(model="r4", prompt=PROMPT, temperature=0, max_tokens=24, stop=stop, stream=True)
    assert "".join(c.choices[0].text for c in stream) == cut.choices[0].text


def test_an_answer_goes_on_past_the_end_of_sequence_when_asked_to(client: openai.OpenAI) -> None:
    arguments: dict[str, Any] = {"model": "tiny", "prompt": "x", "temperature": 2, "seed": 1, "max_tokens": 99, "n": 8}
    usual = client.completions.create(**arguments)
    whole = client.completions.create(**arguments, extra_body={"ignore_eos": True})
    assert "stop" in {choice.finish_reason for choice in usual.choices}
    assert {choice.finish_reason for choice in whole.choices} == {"length"}
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 8 * 99


def test_chat_has_choices_stops_seeds_and_usage(client: openai.OpenAI) -> None:
    arguments: dict[str, Any] = {"model": "r8", "messages": [{"role": "user", "content": "hi"}], "temperature": 0.7}
    arguments |= {"seed": 11, "n": 3, "max_completion_tokens": 16}
    whole = client.chat.completions.create(**arguments)
    assert [c.index for c in whole.choices] == [0, 1, 2]
    assert len({c.message.content for c in whole.choices}) == 3
    texts, usage = ["", "", ""], None
    for chunk in client.chat.completions.create(**arguments, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [c.message.content for c in whole.choices]
    assert usage == whole.usage
    first = whole.choices[0].message.content or ""
    cut = client.chat.completions.create(**{**arguments, "n": 1}, stop=first[2:4])
    assert cut.choices[0].message.content == first[: first.index(first[2:4])]
    assert cut.choices[0].finish_reason == "stop"


def test_a_seed_decides_a_random_answer(client: openai.OpenAI) -> None:
    def ask(seed: int) -> str:
        answer = client.completions.create(model="r8", prompt="x", temperature=1.2, seed=seed, max_tokens=16)
        return answer.choices[0].text

    assert ask(1) == ask(1)
    assert ask(1) != ask(2)


def test_a_tiny_top_p_is_greedy(client: openai.OpenAI) -> None:
    greedy = client.completions.create(model="r8", prompt="x", temperature=0, max_tokens=12)
    nucleus = client.completions.create(model="r8", prompt="x", temperature=1.5, top_p=1e-6, max_tokens=12)
    assert nucleus.choices[0].text == greedy.choices[0].text


def test_models_are_the_base_and_every_registered_adapter(client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()] == ["tiny", "r3", "r4", "r64", "r8"]
    assert client.models.retrieve("r8").id == "r8"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("broken")


def test_every_answer_says_which_set_and_variant_computed_it(http: httpx.Client, server: Running) -> None:
    digests = {a.name: a.digest for a in server.machinery.given.adapters} if server.machinery.given else {}
    body = {"prompt": "x", "max_tokens": 2}
    for stream in (False, True):
        answer = http.post("/v1/completions", json={**body, "model": "r8", "stream": stream})
        assert answer.headers["x-readapt-adapter"] == f"r8@{digests['r8']}"
        assert answer.headers["x-readapt-set"] == "local"
        base = http.post("/v1/completions", json={**body, "model": "tiny", "stream": stream})
        assert "x-readapt-adapter" not in base.headers
    for path in ("/v1/models", "/healthz", "/readyz", "/nowhere"):
        assert http.get(path).headers["x-readapt-set"] == "local"


def test_an_unknown_model_is_404_and_a_broken_adapter_503_with_the_reason(http: httpx.Client) -> None:
    unknown = http.post("/v1/completions", json={"model": "nobody", "prompt": "x"})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
    broken = http.post("/v1/completions", json={"model": "broken", "prompt": "x"})
    assert broken.status_code == 503
    assert int(broken.headers["retry-after"]) > 0
    assert "BadWeights" in broken.json()["error"]["message"]
    assert http.post("/v1/completions", json={"model": "r8", "prompt": "x"}).status_code == 200


REFUSED = {
    "unknown parameter": {"top_k": 3},
    "logprobs beyond five": {"logprobs": 6},
    "logprobs of chat": {"logprobs": True},
    "top_logprobs of chat": {"top_logprobs": 1},
    "true is no number": {"n": True},
    "nor is a text": {"max_tokens": "5"},
    "true is no temperature": {"temperature": True},
    "zero is not false": {"echo": 0},
    "one is not true": {"stream": 1},
    "half a choice": {"n": 1.5},
    "penalty": {"frequency_penalty": 0.5},
    "echo": {"echo": True},
    "best of": {"best_of": 2},
    "negative temperature": {"temperature": -1},
    "no answer tokens": {"max_tokens": 0},
    "too many choices": {"n": 65},
    "longer than the context": {"max_tokens": 256},
    "empty prompt": {"prompt": ""},
    "no prompt": {"prompt": []},
    "token that does not exist": {"prompt": [5, 260]},
    "negative token": {"prompt": [-1]},
    "empty stop": {"stop": [""]},
    "too many stops": {"stop": ["x"] * 17},
    "top_p of zero": {"top_p": 0},
    "stream options of a whole answer": {"stream_options": {"include_usage": True}},
    "stream options of no stream": {"stream": False, "stream_options": {}},
}


@pytest.mark.parametrize("change", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_wrong_or_not_implemented_is_refused(http: httpx.Client, change: dict[str, object]) -> None:
    answer = http.post("/v1/completions", json={"model": "tiny", "prompt": "x", **change})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


EXPLAINED: dict[str, tuple[dict[str, object], str, str]] = {
    "no prompt": ({"prompt": []}, "prompt", "prompt: must not be an empty list"),
    "true is no token": ({"prompt": [True]}, "prompt", "prompt: must be a text, a list of texts, token ids"),
    "half a token": ({"prompt": [1.5]}, "prompt", "prompt: must be a text, a list of texts, token ids"),
    "mixed": ({"prompt": ["a", 1]}, "prompt", "prompt: must be a text, a list of texts, token ids"),
    "penalty": ({"presence_penalty": 1}, "presence_penalty", "presence_penalty: only 0, which changes nothing, is"),
    "logprobs": ({"logprobs": 6}, "logprobs", "logprobs: Input should be less than or equal to 5"),
    "n": ({"n": True}, "n", "n: Input should be a valid integer"),
    "max_tokens": ({"max_tokens": "5"}, "max_tokens", "max_tokens: Input should be a valid integer"),
    "empty stop": ({"stop": [""]}, "stop", "stop: must not be empty"),
    "stream options": ({"stream_options": {}}, "stream_options", "stream_options: is only allowed when 'stream' is"),
}


@pytest.mark.parametrize(("change", "param", "message"), EXPLAINED.values(), ids=EXPLAINED.keys())
def test_the_parameter_that_is_wrong_is_named_in_words_of_the_api(
    http: httpx.Client, change: dict[str, object], param: str, message: str
) -> None:
    answer = http.post("/v1/completions", json={"model": "tiny", "prompt": "x", **change})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert answer.json()["error"]["message"].startswith(message)


TEMPERATURES = [b'{"model": "tiny", "prompt": "x", "temperature": %s}' % n for n in (b"NaN", b"Infinity", b"1e999")]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", *TEMPERATURES, b"\xff\xfe", b"[" * 100_000], ids=repr)
def test_a_body_that_is_no_request_is_refused(http: httpx.Client, body: bytes) -> None:
    answer = http.post("/v1/completions", content=body[:60_000])
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_neutral_values_are_what_is_computed_anyway(client: openai.OpenAI) -> None:
    client.completions.create(
        model="tiny",
        prompt="x",
        max_tokens=1,
        echo=False,
        best_of=1,
        frequency_penalty=0.0,
        presence_penalty=0,
        logit_bias={},
        suffix=None,
        user="someone",
    )


CHAT_REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "a number of logprobs": ({"logprobs": 2}, "logprobs"),
    "top_logprobs alone": ({"top_logprobs": 3}, "top_logprobs"),
    "too many top_logprobs": ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    "true is no number": ({"n": True}, "n"),
    "nor is a text": ({"max_completion_tokens": "5"}, "max_completion_tokens"),
}


@pytest.mark.parametrize(("change", "param"), CHAT_REFUSED.values(), ids=CHAT_REFUSED.keys())
def test_the_client_raises_bad_request_with_the_parameter(
    client: openai.OpenAI, change: dict[str, Any], param: str
) -> None:
    messages: list[Any] = [{"role": "user", "content": "x"}]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=messages, **change)
    assert (caught.value.status_code, caught.value.param) == (400, param)


def test_the_client_raises_not_found_for_an_unknown_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="nobody", prompt="x")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize("change", [{"prompt": "x" * 300}, {"prompt": [1] * 300}, {"max_tokens": 256}], ids=str)
def test_the_client_is_told_by_a_code_that_a_prompt_is_too_long(client: openai.OpenAI, change: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**{"model": "tiny", "prompt": "x", **change})
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "prompt")


def test_the_client_is_told_that_a_conversation_is_too_long(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x" * 250}])
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_an_error_that_nobody_foresaw_has_the_shape_of_the_api_and_counts_as_failed(
    client: openai.OpenAI, http: httpx.Client, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    def failed() -> int:
        return http.get("/metrics").text.count('readapt_requests_total{outcome="failed"} ' + f"{before + 1:.1f}")

    line = next(m for m in http.get("/metrics").text.splitlines() if m.startswith('readapt_requests_total{outcome="fa'))
    before = float(line.split()[1])

    def push(choice: Choice, token: object) -> Piece:
        if taken and stream:
            raise LookupError("a bug")
        taken.append(token)
        if stream:
            return original(choice, token)  # type: ignore[arg-type]
        raise LookupError("a bug")

    taken: list[object] = []
    original = Choice.push
    monkeypatch.setattr(Choice, "push", push)
    arguments: dict[str, Any] = {"model": "tiny", "prompt": "x", "max_tokens": 4, "seed": 1, "stream": stream}
    with pytest.raises(openai.APIError) as caught:
        list(client.completions.create(**arguments))
    assert caught.value.type == "server_error"
    assert caught.value.message.endswith("an internal error occurred") or not stream
    assert isinstance(caught.value, openai.InternalServerError) is not stream
    assert until(lambda: failed() == 1, 20.0, 0.02)


def test_images_and_tools_are_refused(http: httpx.Client) -> None:
    image = [{"type": "image_url", "image_url": {"url": "data:"}}]
    chat = {"model": "tiny", "messages": [{"role": "user", "content": image}]}
    assert http.post("/v1/chat/completions", json=chat).status_code == 400
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "tools": []}
    assert http.post("/v1/chat/completions", json=chat).status_code == 400


def test_unknown_paths_and_methods_have_the_error_shape(http: httpx.Client) -> None:
    assert http.get("/v2").json()["error"]["message"] == "Not Found"
    assert http.get("/v1/completions").status_code == 405
