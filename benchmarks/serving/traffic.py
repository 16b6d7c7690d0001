"""Who asks what and when: S-LoRA's synthetic workload, as a trace that a driver replays.

    .venv/bin/python benchmarks/serving/traffic.py --setting S2 --adapters 200 --rate 2 --cv 1 > trace.jsonl

The adapter is ``⌊power(alpha) · n⌋``, gaps between requests are gamma with shape ``1/cv²`` and scale ``cv²/rate``
(``cv`` 1: Poisson), lengths are uniform with the upper bound left out (``benchmarks/trace.py`` and ``exp_suite.py``
of S-LoRA, arXiv 2311.03285). Drawn by numpy's frozen ``RandomState`` in the order of that script: the same seed gives
its trace, request by request, with any numpy.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

SEED = 42
"""That of S-LoRA's script."""
LENGTHS = (8, 512)


class BadTraffic(ValueError):
    """A profile or a trace file that makes no sense."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A base and the ranks of its adapters in the paper; adapter k has rank ``ranks[k % len(ranks)]``."""

    model: str
    ranks: tuple[int, ...]


SETTINGS = {
    "S1": Setting("Llama-7B", (8,)),
    "S2": Setting("Llama-7B", (64, 32, 16, 8)),
    "S3": Setting("Llama-13B", (16,)),
    "S4": Setting("Llama-13B", (64, 32, 16)),
    "S5": Setting("Llama-30B", (32,)),
    "S6": Setting("Llama-70B", (64,)),
}
"""S1 to S4 as in ``exp_suite.py``, which has no S5 and S6: those are the paper's, not checked against its text here."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Parameters of the distributions; the defaults are the paper's on one A10G."""

    adapters: int = 200
    alpha: float = 1.0
    """1: all adapters alike; the smaller, the more requests go to the first ones."""
    rate: float = 2.0
    """Requests per second."""
    cv: float = 1.0
    """Coefficient of variation of the gaps."""
    duration_s: float = 300.0
    input_range: tuple[int, int] = LENGTHS
    output_range: tuple[int, int] = LENGTHS

    def __post_init__(self) -> None:
        for name in ("adapters", "alpha", "rate", "cv", "duration_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise BadTraffic(f"{name} must be positive, not {getattr(self, name)}")
        if self.rate * self.duration_s < 1:
            raise BadTraffic(f"{self.rate:g} requests a second for {self.duration_s:g} s are none")
        for low, high in (self.input_range, self.output_range):
            if not 1 <= low < high:
                raise BadTraffic(f"lengths from {low} up to {high}, which is left out, are none")

    def scaled(self, lengths: float = 1.0, duration: float = 1.0, rate: float = 1.0) -> Profile:
        """The same shape for a smaller machine: each a fraction of the original. Raises BadTraffic."""
        if not 0 < lengths < math.inf:
            raise BadTraffic(f"lengths must be a positive fraction, not {lengths}")
        return replace(
            self,
            input_range=_shrunk(self.input_range, lengths),
            output_range=_shrunk(self.output_range, lengths),
            duration_s=self.duration_s * duration,
            rate=self.rate * rate,
        )


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of a trace."""

    at: float
    """Seconds after the start."""
    adapter: int | None
    """None: the base."""
    prompt_tokens: int
    output_tokens: int

    def __post_init__(self) -> None:
        whole = (self.prompt_tokens, self.output_tokens, 0 if self.adapter is None else self.adapter)
        if not all(type(number) is int for number in whole) or type(self.at) not in (int, float):
            raise BadTraffic(f"an arrival is made of numbers, not of {self}")
        if not 0 <= self.at < math.inf or min(self.prompt_tokens, self.output_tokens) < 1 or min(whole) < 0:
            raise BadTraffic(f"an arrival that cannot be: {self}")


def generate(profile: Profile, seed: int = SEED) -> list[Arrival]:
    """``⌊rate · duration⌋`` arrivals in the order of time."""
    rng, count = np.random.RandomState(seed), int(profile.rate * profile.duration_s)
    adapters = (rng.power(profile.alpha, count) * profile.adapters).astype(int)
    inputs = rng.randint(*profile.input_range, count)
    outputs = rng.randint(*profile.output_range, count)
    gaps = rng.gamma(1 / profile.cv**2, profile.cv**2 / profile.rate, count)
    columns = (np.cumsum(gaps), adapters, inputs, outputs)
    return [Arrival(float(at), int(k), int(i), int(o)) for at, k, i, o in zip(*columns, strict=True)]


def write_trace(arrivals: Iterable[Arrival]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(asdict(arrival)) + "\n" for arrival in arrivals)


def read_trace(path: Path) -> list[Arrival]:
    """Raises BadTraffic with the line that is no arrival, or comes before the one above it."""
    arrivals: list[Arrival] = []
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadTraffic(f"{path}: {error}") from error
    for number, line in enumerate(lines, 1):
        try:
            arrival = Arrival(**json.loads(line))
        except (TypeError, ValueError) as error:
            raise BadTraffic(f"{path}:{number}: {error}") from error
        if arrivals and arrival.at < arrivals[-1].at:
            raise BadTraffic(f"{path}:{number}: {arrival.at} s comes after {arrivals[-1].at} s")
        arrivals.append(arrival)
    if not arrivals:
        raise BadTraffic(f"{path}: no arrival")
    return arrivals


def add_profile_arguments(parser: argparse.ArgumentParser) -> None:
    default = Profile()
    parser.add_argument("--adapters", type=int, default=default.adapters)
    parser.add_argument("--alpha", type=float, default=default.alpha, help="1: uniform, 0.1: very skewed")
    parser.add_argument("--rate", type=float, default=default.rate, help="requests per second")
    parser.add_argument("--cv", type=float, default=default.cv, help="burstiness of the gaps, 1: Poisson")
    parser.add_argument("--duration", type=float, default=default.duration_s, metavar="SECONDS")
    parser.add_argument("--lengths", type=float, default=1.0, help="fraction of U[8, 512)")
    parser.add_argument("--seed", type=_seed, default=SEED)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number below 2**32")
    return int(text)


def profile_of(arguments: argparse.Namespace) -> Profile:
    """As the arguments say. Raises BadTraffic."""
    profile = Profile(arguments.adapters, arguments.alpha, arguments.rate, arguments.cv, arguments.duration)
    return profile.scaled(lengths=arguments.lengths)


def _shrunk(lengths: tuple[int, int], fraction: float) -> tuple[int, int]:
    low = max(1, round(lengths[0] * fraction))
    return low, max(low + 1, round(lengths[1] * fraction))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", choices=SETTINGS, help="told on standard error: base and ranks to serve")
    add_profile_arguments(parser)
    told = parser.parse_args(arguments)
    try:
        profile = profile_of(told)
    except BadTraffic as error:
        parser.error(str(error))
    if told.setting:
        setting = SETTINGS[told.setting]
        ranks = ", ".join(str(setting.ranks[k % len(setting.ranks)]) for k in range(min(told.adapters, 8)))
        sys.stderr.write(f"{told.setting}: {setting.model}, adapters of ranks {ranks}, … in turn\n")
    sys.stdout.write(write_trace(generate(profile, told.seed)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
