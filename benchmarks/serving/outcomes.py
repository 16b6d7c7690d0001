"""What came of the requests of a run, and its summary: latencies, attainment, throughput, errors.

Every latency counts from the *scheduled* arrival, not from when the client got round to sending: a server (or client)
that falls behind cannot hide it (coordinated omission). Times are seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

FIRST_TOKEN_SLO_S = 6.0
"""S-LoRA's: the first token in less than this."""
PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request; all times on one monotonic clock."""

    scheduled: float
    sent: float
    chunks: tuple[float, ...]
    """When each chunk that carries a choice came in."""
    ended: float
    tokens: int
    """As the server counts them; 0 when it was never told."""
    model: str
    error: str = ""
    """Kind of failure; empty for a whole answer."""

    @property
    def first_token_s(self) -> float | None:
        return self.chunks[0] - self.scheduled if self.chunks else None

    @property
    def end_to_end_s(self) -> float:
        return self.ended - self.scheduled

    @property
    def gaps_s(self) -> list[float]:
        """Between chunks, as a reader sees them; engines that stream send one per token."""
        return [later - earlier for earlier, later in pairwise(self.chunks)]


@dataclass(frozen=True, slots=True)
class Spread:
    """Percentiles of one latency."""

    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """None of nothing."""
        return cls(*map(float, np.percentile(values, PERCENTILES))) if values else None


@dataclass(frozen=True, slots=True)
class Summary:
    """One run. Latencies are of whole answers; attainment counts every request, failed ones as missed."""

    requests: int
    completed: int
    errors: dict[str, int]
    """Kind -> requests."""
    duration_s: float
    """From the first scheduled arrival to the end of the last answer."""
    requests_per_s: float
    output_tokens_per_s: float
    first_token: Spread | None
    inter_token: Spread | None
    end_to_end: Spread | None
    attainment: dict[str, float]
    """First-token objective in seconds -> share of requests that met it."""
    send_lag: Spread | None
    """How late the client sent: when this is not small, the client was the bottleneck."""
    chunks_per_token: float
    """Below 1 the server sends several tokens a chunk, and gaps between chunks are not gaps between tokens."""


def summarize(outcomes: Sequence[Outcome], slos_s: Sequence[float] = (FIRST_TOKEN_SLO_S,)) -> Summary:
    """Raises ValueError when there were no requests."""
    if not outcomes:
        raise ValueError("no requests, nothing to summarize")
    whole = [o for o in outcomes if not o.error]
    first = [o.first_token_s for o in whole if o.first_token_s is not None]
    duration = max(o.ended for o in outcomes) - min(o.scheduled for o in outcomes)
    tokens, chunks = sum(o.tokens for o in whole), sum(len(o.chunks) for o in whole)
    return Summary(
        requests=len(outcomes),
        completed=len(whole),
        errors=dict(Counter(o.error for o in outcomes if o.error)),
        duration_s=duration,
        requests_per_s=len(whole) / duration,
        output_tokens_per_s=tokens / duration,
        first_token=Spread.of(first),
        inter_token=Spread.of([gap for o in whole for gap in o.gaps_s]),
        end_to_end=Spread.of([o.end_to_end_s for o in whole]),
        attainment={f"{slo:g}": sum(t < slo for t in first) / len(outcomes) for slo in slos_s},
        send_lag=Spread.of([o.sent - o.scheduled for o in outcomes]),
        chunks_per_token=chunks / tokens if tokens else 0.0,
    )


_HEADINGS = (
    ("run", "whole / sent", "tokens/s", "requests/s"),
    ("TTFT p50 / p90 / p99", "ITL p50 / p90 / p99", "end to end p50 / p90 / p99"),
    ("attainment", "errors", "send lag p99"),
)


def table(rows: Sequence[tuple[str, Summary]]) -> str:
    """One Markdown line per named run; latencies in milliseconds."""
    headings = [text for group in _HEADINGS for text in group]
    lines = [headings, ["---"] * len(headings), *(_row(name, summary) for name, summary in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _row(name: str, s: Summary) -> list[str]:
    met = ", ".join(f"{share:.0%} < {slo} s" for slo, share in s.attainment.items())
    errors = ", ".join(f"{count} × {kind}" for kind, count in sorted(s.errors.items())) or "none"
    speed = [f"{s.completed} / {s.requests}", f"{s.output_tokens_per_s:.1f}", f"{s.requests_per_s:.2f}"]
    latencies = [_milliseconds(spread) for spread in (s.first_token, s.inter_token, s.end_to_end)]
    return [name, *speed, *latencies, met, errors, f"{s.send_lag.p99 * 1e3:.0f}" if s.send_lag else "–"]


def _milliseconds(spread: Spread | None) -> str:
    return "–" if spread is None else " / ".join(f"{1e3 * t:.0f}" for t in (spread.p50, spread.p90, spread.p99))
