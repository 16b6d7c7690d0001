"""How good an adapter is that nothing came before: its answers beside those of the base alone.

It is no gate: what was trained is served as it is, and the gate of later moves compares with it. The interval says how
sure the gain over the base is.
"""

from __future__ import annotations

from collections.abc import Sequence

from readapt_api.artifacts import Origin
from readapt_api.jobs import GateVerdict, Interval, RungResult
from readapt_runtime.adapt.base import LoadedBase
from readapt_runtime.adapt.comparison import AnswerStream, Pair
from readapt_runtime.adapt.data import Example
from readapt_runtime.adapt.measure import Measure, mean
from readapt_runtime.lora_format import LoraAdapter

MAX_SAMPLES = 3000
_LEVEL = 0.05
"""Of each end of the interval."""


def score(
    origin: Origin,
    measure: Measure,
    base: LoadedBase,
    adapter: LoraAdapter,
    examples: Sequence[Example],
    seconds: float,
) -> RungResult:
    """On the first MAX_SAMPLES of ``examples``; ``reference`` is the base alone."""
    asked, metric = examples[:MAX_SAMPLES], measure.metric
    before, now = (_scores(measure, Pair(base, attached), asked) for attached in (None, adapter))
    evidence = measure.evidence(before, now)
    scores = f"{metric} {metric.unit.score(mean(now))} on {len(asked)} examples"
    return RungResult(
        origin=origin,
        verdict=GateVerdict.NOT_NEEDED,
        metric=metric,
        score=mean(now),
        reference=mean(before),
        interval=Interval(lower=evidence.lower_end(_LEVEL), upper=evidence.upper_end(_LEVEL)),
        samples=len(asked),
        seconds=seconds,
        message=f"{scores}, that of the base alone is {metric.unit.score(mean(before))}",
    )


def _scores(measure: Measure, pair: Pair, examples: Sequence[Example]) -> list[float]:
    answers = AnswerStream(pair, examples, measure.form).all()
    return measure.scores(examples, answers, answers)
