"""The behaviour probe: does this pod compute with the variant what the Job that made it computed?

In: a registered variant and its ``probe.json``. Out: a verdict. The shift of log-probabilities that the adapter
causes is measured through the engine's own prefill and decode, with and without the adapter in one batch. Inert,
wrong or stale weights shift something else, or nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from readapt_api.artifacts import Probe
from readapt_api.errors import Terminal
from readapt_runtime.engine.core import Variant
from readapt_runtime.server.engine_client import EngineClient

MIN_COSINE = 0.95
NORM_RATIO = (0.8, 1.25)
# Error of one log-probability shift, root mean square; bfloat16 keeps 8 bits of a logit of about 20.
NOISE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 4e-2}
# A prompt counts when its shift is this many times the noise: noise alone then costs at most 0.02 of cosine.
LOUD = 5.0


class ProbeMismatch(Terminal):
    """The variant does not behave here as it did where it was made."""


class BadProbe(Terminal):
    """A probe that does not belong to this model."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """``message`` says what was compared."""

    passed: bool
    message: str


def judge(probe: Probe, measured: Sequence[Sequence[float]], dtype: str) -> Verdict:
    """Compares recorded and measured shifts ``[prompts][top ids]`` over the prompts that are loud enough.

    A prompt that was quiet when it was recorded must be quiet here. When all were, the shifts cannot tell
    variants apart, and the hash of the weights alone vouches for them.
    """
    noise = max(NOISE[dtype], NOISE.get(probe.dtype, max(NOISE.values())))
    expected: list[float] = []
    found: list[float] = []
    for prompt, shift in zip(probe.prompts, measured, strict=True):
        floor = LOUD * noise * math.sqrt(len(shift))
        if _norm(prompt.shift) >= floor:
            expected += prompt.shift
            found += shift
        elif _norm(shift) >= 2 * floor:
            return Verdict(False, f"shift of norm {_norm(shift):.3g} on a prompt where none was recorded")
    if not expected:
        return Verdict(True, "the recorded shifts are below the noise: verified by the hash of the weights alone")
    return _compare(expected, found)


def _compare(expected: Sequence[float], found: Sequence[float]) -> Verdict:
    ratio = _norm(found) / _norm(expected)
    product = sum(a * b for a, b in zip(expected, found, strict=True))
    cosine = product / (_norm(expected) * _norm(found)) if _norm(found) > 0 else 0.0
    passed = cosine >= MIN_COSINE and NORM_RATIO[0] <= ratio <= NORM_RATIO[1]
    return Verdict(passed, f"probe: cosine {cosine:.4f}, norm ratio {ratio:.3f} over {len(expected)} shifts")


def _norm(values: Sequence[float]) -> float:
    return math.sqrt(sum(v * v for v in values))


@dataclass(frozen=True, slots=True)
class Verifier:
    """Measures probes on this pod's engine."""

    client: EngineClient
    vocab_size: int
    dtype: str

    async def verify(self, variant: Variant, probe: Probe | None) -> Verdict:
        """Raises BadProbe for a probe that this model cannot run, and what the engine raises."""
        if probe is None:
            return Verdict(True, "no probe: verified by the hash of the weights alone")
        self._check(probe)
        prompts = [(prompt.token_ids, prompt.top_ids) for prompt in probe.prompts]
        base = await self.client.score(prompts, None)
        adapted = await self.client.score(prompts, variant)
        shifts = [[a - b for a, b in zip(*pair, strict=True)] for pair in zip(adapted, base, strict=True)]
        return judge(probe, shifts, self.dtype)

    def _check(self, probe: Probe) -> None:
        for prompt in probe.prompts:
            if len(prompt.shift) != len(prompt.top_ids):
                raise BadProbe("probe.json: as many shifts as token ids are needed")
            if not all(0 <= i < self.vocab_size for i in (*prompt.token_ids, *prompt.top_ids)):
                raise BadProbe(f"probe.json: token ids must be below {self.vocab_size}")
