"""Prompts that are long to encode or to parse (D4): neighbours are answered while they are judged."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from readapt_cluster.waiting import until
from readapt_runtime.server.limits import Limits
from readapt_runtime.server.startup import Options
from readapt_runtime.server.token_bytes import bytes_per_token
from readapt_testing.raw_http import connect
from readapt_testing.serving import Running, serving
from readapt_testing.tiny_engine import Tiny
from readapt_testing.tiny_llama import CHAT_TEMPLATE

DEFAULT_BODY = Limits().max_body_bytes
LIMITS = Limits(max_model_len=256, pool_bytes=16 << 20, linger_s=0.2)
TRUTHS = {"a text": "x" * (DEFAULT_BODY - 200), "umlauts": "ü" * (DEFAULT_BODY // 6 - 100)}
SHAPES = {
    "token ids": b"1," * 4_000_000 + b"1",
    "wrong at the end": b"1," * 4_000_000 + b"1.5",
    "lists": b"[1]," * 2_000_000 + b"[1]",
    "empty lists": b"[]," * 2_700_000 + b"2",
    "texts": b'"",' * 2_700_000 + b'""',
    "objects": b"{}," * 2_700_000 + b"{}",
    "text that looks like it": b'",,,,[[[[", ' * 600_000 + b'""',
}


@pytest.fixture(scope="module")
def default(tiny: Tiny) -> Iterator[Running]:
    """A server whose bound on bodies is the default."""
    with serving(Options(base=tiny.base, served_name="tiny", port=0, admin_port=0, limits=LIMITS)) as running:
        yield running


def _refusal(server: Running, content: bytes, path: str = "completions") -> tuple[int, dict[str, Any]]:
    assert len(content) <= DEFAULT_BODY
    answer = httpx.post(f"{server.serving}/v1/{path}", content=content, timeout=60)
    return answer.status_code, answer.json()["error"]


@pytest.mark.parametrize("text", TRUTHS.values(), ids=TRUTHS)
def test_a_text_that_cannot_fit_is_refused_without_being_encoded(
    default: Running, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(default.machinery.tokens, "_tokenizer", None)
    status, error = _refusal(default, json.dumps({"model": "tiny", "prompt": ["x" * 9, text][1:]}).encode())
    assert (status, error["code"], error["param"]) == (400, "context_length_exceeded", "prompt")


def test_a_conversation_that_cannot_fit_is_refused(default: Running) -> None:
    chat = {"model": "tiny", "messages": [{"role": "user", "content": TRUTHS["a text"]}]}
    status, error = _refusal(default, json.dumps(chat).encode(), "chat/completions")
    assert (status, error["code"], error["param"]) == (400, "context_length_exceeded", "messages")


@pytest.mark.parametrize("inner", SHAPES.values(), ids=SHAPES)
def test_a_body_of_more_elements_than_a_request_has_is_refused_before_it_is_parsed(
    default: Running, inner: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("readapt_runtime.server.openai.parse_body", None)
    status, error = _refusal(default, b'{"model": "tiny", "prompt": [' + inner + b"]}")
    assert (status, "elements" in error["message"]) == (400, True)


def test_commas_and_brackets_of_a_text_are_no_elements(tiny: Tiny) -> None:
    limits = replace(LIMITS, max_model_len=512)
    with serving(Options(base=tiny.base, served_name="tiny", port=0, admin_port=0, limits=limits)) as server:
        body = {"model": "tiny", "prompt": ['"[{,:\\' * 16] * 9, "max_tokens": 1, "n": 7}
        assert httpx.post(f"{server.serving}/v1/completions", json=body, timeout=60).status_code == 200
        text = '"[{,:\\"' * 200_000
        status, error = _refusal(server, json.dumps({"model": "tiny", "prompt": text}).encode())
        assert (status, error["code"]) == (400, "context_length_exceeded")


def test_health_and_a_running_stream_go_on_while_a_hostile_prompt_is_encoded(
    default: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokenizer is held back until the others were answered: on the event loop they never would be."""
    tokens, begun, go_on = default.machinery.tokens, threading.Event(), threading.Event()
    encode = tokens.encode

    def slow(text: str) -> tuple[int, ...]:
        if len(text) > 1000:
            begun.set()
            assert go_on.wait(60)
        return encode(text)

    monkeypatch.setattr(tokens, "encode", slow)
    monkeypatch.setattr(tokens, "bytes_per_token", None)
    hostile = json.dumps({"model": "tiny", "prompt": TRUTHS["a text"][: 1 << 20]}).encode()
    answers: list[tuple[int, dict[str, Any]]] = []
    sender = threading.Thread(target=lambda: answers.append(_refusal(default, hostile)))
    body = {"model": "tiny", "prompt": "x", "max_tokens": 40, "temperature": 1, "seed": 1, "stream": True}
    try:
        sender.start()
        assert begun.wait(60)
        with httpx.stream("POST", f"{default.serving}/v1/completions", json=body, timeout=30) as stream:
            chunks = [line for line in stream.iter_lines() if line]
        assert len(chunks) > 2
        assert chunks[-1] == "data: [DONE]"
        assert httpx.get(f"{default.serving}/healthz").text == "ok"
        assert not answers
    finally:
        go_on.set()
        sender.join(60)
    assert [(status, error["code"]) for status, error in answers] == [(400, "context_length_exceeded")]


def test_the_tokenizer_lets_others_run_while_it_encodes(tiny: Tiny) -> None:
    """What the test above cannot show, for it waits in place of the tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(tiny.base)
    turns = [0]
    worker = threading.Thread(target=lambda: tokenizer("xy z" * 200_000))
    worker.start()
    while worker.is_alive():
        worker.join(0.001)
        turns[0] += 1
    assert turns[0] > 10


def test_who_leaves_while_the_prompt_is_encoded_is_not_answered(
    default: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, begun, go_on = default.machinery.tokens, threading.Semaphore(0), threading.Event()
    encoded: list[int] = []

    def slow(text: str) -> tuple[int, ...]:
        begun.release()
        assert go_on.wait(60)
        encoded.append(len(text))
        return (1, 2)

    monkeypatch.setattr(tokens, "encode", slow)
    monkeypatch.setattr(tokens, "bytes_per_token", None)
    content = json.dumps({"model": "tiny", "prompt": ["x" * 2000, "y" * 2000]}).encode()
    passes = default.machinery.engine.forward_passes
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n\r\n".encode()
    with connect(default) as connection:
        connection.sendall(head + content)
        assert begun.acquire(timeout=30)

    def gone() -> bool:
        return 'requests_total{outcome="gone"} 1.0' in httpx.get(f"{default.serving}/metrics").text

    try:
        assert until(gone, 30, every_s=0.02)
    finally:
        go_on.set()
    assert until(lambda: encoded == [2000], 30, every_s=0.02), "the second is not begun"
    assert default.machinery.engine.forward_passes == passes


def _made(merges: list[tuple[str, str]], normalizer: object = None) -> Any:
    """A byte-level tokenizer whose merges make longer tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, *(a + b for a, b in merges)])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    if normalizer is not None:
        made.normalizer = normalizer
    return PreTrainedTokenizerFast(tokenizer_object=made, chat_template=CHAT_TEMPLATE)  # type: ignore[no-untyped-call]


def _bound(tokenizer: Any) -> int | None:
    return bytes_per_token(json.loads(tokenizer.backend_tokenizer.to_str()))


@pytest.mark.parametrize("normalizer", [None, normalizers.NFC()], ids=["plain", "NFC"])
def test_no_token_stands_for_more_bytes_than_the_bound(normalizer: object) -> None:
    tokenizer = _made([("a", "b"), ("ab", "ab"), ("abab", "abab")], normalizer)
    bound = _bound(tokenizer)
    assert bound is not None
    numbers = random.Random(0)
    texts = ["".join(numbers.choices("ab ße\u0301\u0308\u1fbe\U0001f600", k=50)) for _ in range(200)]
    for text in [*texts, "ab" * 64, "\u1fbe\u0308\u0341" * 20]:
        assert len(tokenizer(text)["input_ids"]) * bound >= len(text.encode())
    if normalizer is None:
        assert len(tokenizer("ab" * 64)["input_ids"]) * bound == 128, "and it is no larger than it must be"


def test_there_is_no_bound_where_text_may_vanish() -> None:
    assert _bound(_made([], normalizers.Strip())) is None
    assert _bound(_made([], normalizers.Replace("aa", "a"))) is None
    wordwise = _made([])
    wordwise.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    assert _bound(wordwise) is None
