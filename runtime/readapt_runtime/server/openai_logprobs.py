"""``logprobs`` of the OpenAI API: one entry for every token that ``usage`` counts, in either of the two shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from readapt_runtime.engine.core import TokenScores
from readapt_runtime.server.token_names import TokenNames


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token of an answer; ``offset`` is how many characters of the text were final before it."""

    token_id: int
    offset: int
    scores: TokenScores


def completion_logprobs(scored: Sequence[ScoredToken], names: TokenNames) -> dict[str, Any] | None:
    """Parallel lists; the chosen token is among the likeliest whether it is one of them or not."""
    if not scored:
        return None
    return {
        "tokens": [names.name(s.token_id) for s in scored],
        "token_logprobs": [s.scores.chosen for s in scored],
        "top_logprobs": [_by_name(s, names) for s in scored],
        "text_offset": [s.offset for s in scored],
    }


def _by_name(scored: ScoredToken, names: TokenNames) -> dict[str, float]:
    """Of two tokens with one name the likelier counts."""
    found: dict[str, float] = {}
    for token, log_prob in (*scored.scores.top, (scored.token_id, scored.scores.chosen)):
        found.setdefault(names.name(token), log_prob)
    return found


def chat_logprobs(scored: Sequence[ScoredToken], names: TokenNames) -> dict[str, Any] | None:
    """A list of tokens, each with the likeliest tokens of its place."""
    if not scored:
        return None
    content = [
        {
            **_entry(s.token_id, s.scores.chosen, names),
            "top_logprobs": [_entry(token, log_prob, names) for token, log_prob in s.scores.top],
        }
        for s in scored
    ]
    return {"content": content, "refusal": None}


def _entry(token: int, log_prob: float, names: TokenNames) -> dict[str, Any]:
    return {"token": names.name(token), "logprob": log_prob, "bytes": list(names.bytes_of(token))}
