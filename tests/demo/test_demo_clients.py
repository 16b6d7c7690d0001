"""The demo's clients: what no server should answer is a failure, and a client that dies is heard of."""

from __future__ import annotations

import httpx
import pytest

from readapt_demo import traffic
from readapt_demo.traffic import Traffic, ask

QUESTIONS = [("tiny", "a")]


@pytest.mark.parametrize("body", ["[]", "{}", '{"choices": []}', "no JSON"])
def test_an_answer_of_no_sense_is_a_failure(body: str) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, text=body))
    with httpx.Client(base_url="http://stub", transport=transport) as client:
        answer = ask(client, *QUESTIONS[0])
    assert answer.failed
    assert answer.error


def test_a_client_that_dies_is_heard_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("seven")

    monkeypatch.setattr(traffic, "ask", broken)
    with pytest.raises(ZeroDivisionError), Traffic("http://stub", QUESTIONS):
        pass
    with pytest.raises(KeyError), Traffic("http://stub", QUESTIONS):
        raise KeyError("what was on its way comes through")
