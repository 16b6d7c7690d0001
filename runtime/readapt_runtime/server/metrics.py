"""What clients experience, counted where answers are made: outcomes, times, tokens.

In: one ``AnswerClock`` per answered request and the outcome of every request. Out: ``/metrics``, together with what
``engine_metrics`` reads off the engine. The registry is this object's own. No label takes more than a few values.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from starlette.requests import Request
from starlette.responses import Response

_FIRST_TOKEN_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_NEXT_TOKEN_S = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1, 2.5)
_WHOLE_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Outcome(StrEnum):
    ANSWERED = "answered"
    """Completely."""
    REFUSED = "refused"
    """Status 4xx."""
    FAILED = "failed"
    """Status 5xx, or an error in the middle of a stream."""
    GONE = "gone"
    """The client went away first."""


class ServingMetrics:
    """Used on one event loop; one instance per process."""

    def __init__(self) -> None:
        own = self.registry = CollectorRegistry()
        self._requests = Counter("readapt_requests", "Requests for answers.", ["outcome"], registry=own)
        for outcome in Outcome:
            self._requests.labels(outcome.value)
        self.prompt_tokens = Counter("readapt_prompt_tokens", "Prompt tokens of answered requests.", registry=own)
        self.generated_tokens = Counter("readapt_generated_tokens", "Tokens of answers.", registry=own)
        self.first_token = Histogram(
            "readapt_time_to_first_token_seconds", "From admission.", buckets=_FIRST_TOKEN_S, registry=own
        )
        self.next_token = Histogram(
            "readapt_inter_token_latency_seconds", "Between tokens of a choice.", buckets=_NEXT_TOKEN_S, registry=own
        )
        self.whole = Histogram(
            "readapt_request_seconds", "From admission to the end of the answer.", buckets=_WHOLE_S, registry=own
        )

    def count(self, outcome: Outcome) -> None:
        self._requests.labels(outcome.value).inc()

    async def endpoint(self, request: Request) -> Response:
        """``GET /metrics``."""
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)


class AnswerClock:
    """Times one admitted request; ``started`` is on ``clock``, in seconds."""

    def __init__(self, metrics: ServingMetrics, clock: Callable[[], float], started: float, prompt_tokens: int) -> None:
        self._metrics = metrics
        self._clock = clock
        self._started = started
        self._prompt_tokens = prompt_tokens
        self._last: dict[int, float] = {}

    def token(self, choice: int) -> None:
        now = self._clock()
        if not self._last:
            self._metrics.first_token.observe(now - self._started)
            self._metrics.prompt_tokens.inc(self._prompt_tokens)
        if choice in self._last:
            self._metrics.next_token.observe(now - self._last[choice])
        self._last[choice] = now
        self._metrics.generated_tokens.inc()

    def end(self) -> None:
        """The answer is complete."""
        self._metrics.whole.observe(self._clock() - self._started)
