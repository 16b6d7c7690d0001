"""What is decoded: requests of random tokens, spread over adapters of given ranks. Shared by every engine's runner."""

from __future__ import annotations

import json
import random
import sys
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Workload:
    """Sent at once, answered to the full length."""

    name: str
    ranks: tuple[int, ...]
    """One adapter per rank; request i asks adapter i modulo their number, without adapters the base."""
    requests: int = 32
    prompt_tokens: int = 64
    output_tokens: int = 64
    temperature: float = 0.0
    """0: greedy."""
    top_p: float = 1.0
    vocabulary: int = 40_000
    """Token ids of prompts are below."""

    def prompts(self) -> list[list[int]]:
        """Random token ids, the same in every process."""
        rng = random.Random(7)
        return [[rng.randrange(100, self.vocabulary) for _ in range(self.prompt_tokens)] for _ in range(self.requests)]


WORKLOADS = (
    Workload("W1 base", ()),
    Workload("W2 one adapter, r 16", (16,)),
    Workload("W3 eight adapters, r 16", (16,) * 8),
    Workload("W4 32 adapters, r 8/16/32/64", (8, 16, 32, 64) * 8),
    Workload("W1 base, sampled, top-p 0.95", (), temperature=0.8, top_p=0.95),
    Workload("one request, base", (), requests=1),
)


@dataclass(frozen=True)
class Job:
    """What a runner is told on its command line, as JSON."""

    base: str
    adapters: tuple[str, ...]
    """PEFT folders, one per rank."""
    threads: int
    workload: Workload

    def to_argument(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_argument(cls) -> Job:
        told: dict[str, Any] = json.loads(sys.argv[1])
        workload = told["workload"] | {"ranks": tuple(told["workload"]["ranks"])}
        return cls(told["base"], tuple(told["adapters"]), told["threads"], Workload(**workload))


def report(seconds: float, answers: list[list[int]]) -> None:
    """The runner's last line: the time of all requests, and the tokens that each was answered."""
    sys.stdout.write("\n" + json.dumps({"seconds": seconds, "answers": answers}) + "\n")
