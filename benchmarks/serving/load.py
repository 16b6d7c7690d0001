"""Replays a trace against any OpenAI-compatible server, open loop, and reports latencies as JSON and a Markdown table.

    .venv/bin/python benchmarks/serving/load.py --url http://127.0.0.1:8080 --models a0,a1,a2 --trace trace.jsonl
    .venv/bin/python benchmarks/serving/load.py --url … --models 'a{}' --adapters 32 --rate 2 --duration 150

Requests are sent when the trace says, whatever the server does meanwhile. Prompts are random token ids, the same for
the same seed. ``--extra '{"ignore_eos": true}'`` adds fields to every request, for servers that know them: without it
an answer may end before its length.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from outcomes import FIRST_TOKEN_SLO_S, Outcome, summarize, table
from streaming import ask
from traffic import SEED, Arrival, BadTraffic, add_profile_arguments, generate, profile_of, read_trace

TIMEOUT_S = 600.0
VOCABULARY = (100, 40_000)
"""Token ids of prompts; the upper bound is left out."""
_LEAD_S = 0.2
"""Until the first arrival: the client is ready by then."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where and how to ask."""

    url: str
    models: tuple[str, ...]
    """Model of adapter k is ``models[k % len(models)]``."""
    base: str = ""
    """Model of arrivals without an adapter."""
    vocabulary: tuple[int, int] = VOCABULARY
    extra: Mapping[str, Any] = field(default_factory=dict)
    timeout_s: float = TIMEOUT_S
    api_key: str = ""

    def body(self, arrival: Arrival, seed: int) -> dict[str, Any]:
        """A greedy completion of random token ids."""
        model = self.base if arrival.adapter is None else self.models[arrival.adapter % len(self.models)]
        prompt = random.Random(seed).choices(range(*self.vocabulary), k=arrival.prompt_tokens)
        return {"model": model, "prompt": prompt, "max_tokens": arrival.output_tokens, "temperature": 0, **self.extra}


async def replay(trace: Sequence[Arrival], target: Target, seed: int = SEED) -> list[Outcome]:
    """One outcome per arrival, in their order."""
    headers = {"Authorization": f"Bearer {target.api_key}"} if target.api_key else {}
    bodies = [target.body(arrival, seed + number) for number, arrival in enumerate(trace)]
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(headers=headers, connector=connector, timeout=aiohttp.ClientTimeout()) as session:
        start, asked = time.monotonic() + _LEAD_S, []
        async with asyncio.TaskGroup() as group:
            for arrival, body in zip(trace, bodies, strict=True):
                scheduled = start + arrival.at
                await asyncio.sleep(scheduled - time.monotonic())
                asked.append(group.create_task(ask(session, target.url, body, scheduled, target.timeout_s)))
        return [task.result() for task in asked]


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when every answer was whole, else 1."""
    parser = _parser()
    told = parser.parse_args(arguments)
    try:
        trace = read_trace(told.trace) if told.trace else generate(profile_of(told), told.seed)
    except BadTraffic as error:
        parser.error(str(error))
    for path in (told.json, told.plot):
        if path and not path.parent.is_dir():
            parser.error(f"{path}: no such folder: {path.parent}")
    names = told.models.split(",")
    if names == [told.models] and "{}" in told.models:
        names = [told.models.replace("{}", str(k)) for k in range(told.adapters)]
    target = Target(
        url=told.url.rstrip("/"),
        models=tuple(names),
        base=told.base,
        vocabulary=told.vocabulary,
        extra=told.extra,
        timeout_s=told.timeout,
        api_key=told.api_key_file.read_text().strip() if told.api_key_file else "",
    )
    outcomes = asyncio.run(replay(trace, target, told.seed))
    summary = summarize(outcomes, told.slo or [FIRST_TOKEN_SLO_S])
    if told.json:
        record = {"summary": asdict(summary), "outcomes": [asdict(outcome) for outcome in outcomes]}
        told.json.write_text(json.dumps(record, indent=1) + "\n")
    if told.plot:
        from charts import plot_runs

        plot_runs({told.name: outcomes}, told.plot)
    sys.stdout.write(table([(told.name, summary)]))
    return 1 if summary.errors else 0


def _vocabulary(text: str) -> tuple[int, int]:
    low, _, high = text.partition(":")
    if not (low.isdecimal() and high.isdecimal() and int(low) < int(high)):
        raise argparse.ArgumentTypeError(f"{text}: must be two numbers, the smaller one first, as in 100:40000")
    return int(low), int(high)


def _fields(text: str) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None
    if not isinstance(fields, dict):
        raise argparse.ArgumentTypeError(f"{text}: must be an object")
    return fields


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="without /v1")
    parser.add_argument("--models", required=True, help="comma-separated, or a pattern such as 'a{}' for --adapters")
    parser.add_argument("--base", default="", metavar="MODEL", help="for arrivals of a trace without an adapter")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="of traffic.py; else generated as below")
    add_profile_arguments(parser)
    parser.add_argument("--slo", type=float, action="append", metavar="SECONDS", help="first token; repeatable")
    parser.add_argument("--vocabulary", type=_vocabulary, default=VOCABULARY, metavar="LOW:HIGH")
    parser.add_argument("--extra", type=_fields, default={}, metavar="JSON")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, metavar="SECONDS", help="of one request")
    parser.add_argument("--api-key-file", type=Path, metavar="FILE")
    parser.add_argument("--name", default="run", help="of the row in the table")
    parser.add_argument("--json", type=Path, metavar="FILE", help="summary and every outcome")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="distributions of TTFT and ITL (svg, png, pdf)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
