"""``readapt adapt``: the adapt Job's work on directories. Imports nothing heavy, so that ``--help`` is quick."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter, ValidationError

from readapt_api.adaptation import GateMode, Metric, Policy
from readapt_api.bounds import (
    BATCH_SIZE,
    CONFIDENCE,
    LEARNING_RATE,
    MAX_REGRESSION,
    MAX_SAMPLES,
    MAX_STEPS,
    MIN_RETENTION,
    TRIALS,
    Range,
)
from readapt_api.contract import Decimal
from readapt_runtime.out_folder import OUT_RULE


def decimal_option(says: str, bounds: Range) -> Any:
    """An option whose value is a decimal within ``bounds``, written as in a resource."""
    decimal = TypeAdapter[str](Annotated[Decimal, bounds])

    def check(text: str) -> str:
        try:
            return decimal.validate_python(text)
        except ValidationError:
            raise typer.BadParameter(f"{text!r} is not a number {bounds}") from None

    return typer.Option(metavar="X", help=says, callback=check)


def whole_option(says: str, bounds: Range) -> Any:
    return typer.Option(metavar="N", help=says, min=bounds.least, max=bounds.most)


def adapt(
    old_base: Annotated[Path, typer.Option(metavar="DIR", help="The base that the adapter was made for.")],
    new_base: Annotated[Path, typer.Option(metavar="DIR", help="The base that it should work on.")],
    adapter: Annotated[Path, typer.Option(metavar="DIR", help="PEFT LoRA adapter.")],
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", help=f"Gets the adapter that passed, evidence.json, report.html. {OUT_RULE}"),
    ],
    train: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON Lines with prompt and completion; with --validation.")
    ] = None,
    validation: Annotated[
        Path | None, typer.Option(metavar="FILE", help="For the search and for early stopping; with --train.")
    ] = None,
    test: Annotated[
        Path | None, typer.Option(metavar="FILE", help="For the gate alone. Default: half of validation.")
    ] = None,
    inputs: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON Lines with prompt alone, for Refresh. May be all there is."),
    ] = None,
    policy: Annotated[Policy, typer.Option(help="Which ways to try; Auto: all, cheapest first.")] = Policy.AUTO,
    gate_mode: Annotated[GateMode, typer.Option(help="Skip: copy the weights and compare nothing.")] = GateMode.ENFORCE,
    metric: Annotated[
        Metric, typer.Option(help="What the gate compares. Agreement with --inputs alone.")
    ] = Metric.ACCURACY,
    min_retention: Annotated[str, decimal_option("Share of Copy's retention to keep.", MIN_RETENTION)] = "0.9",
    max_regression: Annotated[
        str, decimal_option("What may be lost; 0.03 are 3 points, or nats.", MAX_REGRESSION)
    ] = "0.03",
    max_samples: Annotated[int, whole_option("Most examples that the gate looks at.", MAX_SAMPLES)] = 3000,
    trials: Annotated[int, whole_option("Points of the search.", TRIALS)] = 8,
    max_steps: Annotated[int, whole_option("Most steps of tuning.", MAX_STEPS)] = 300,
    learning_rate: Annotated[str, decimal_option("Of tuning.", LEARNING_RATE)] = "2e-4",
    batch_size: Annotated[int, whole_option("Examples of one step of tuning.", BATCH_SIZE)] = 8,
    confidence: Annotated[str, decimal_option("Of the gate.", CONFIDENCE)] = "0.95",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Carry a LoRA adapter from one version of its base to another, and prove that it is as good as before.

    Prints one JSON object; `passed` says whether a variant passed the gate, its adapter is then in --out. When none
    passed, --out holds evidence.json and report.html alone. A run that was interrupted goes on where it was when it is
    started again with the same arguments; what it needs for that is in --out, hidden.

    Example:

      readapt adapt --old-base ./v1 --new-base ./v2 --adapter ./support --train train.jsonl
      --validation validation.jsonl --test test.jsonl --out ./support-v2

    Without labels:

      readapt adapt --old-base ./v1 --new-base ./v2 --adapter ./support --inputs prompts.jsonl --metric Agreement
      --out ./support-v2
    """
    from readapt_api.jobs import AdaptationSettings, GateSettings
    from readapt_runtime.adapt.folders import Folders, adapt_folders
    from readapt_runtime.device import choose_repeatable

    result = adapt_folders(
        Folders(old_base, new_base, adapter, train, validation, test, inputs, out),
        AdaptationSettings(
            policy=policy,
            min_retention=min_retention,
            trials=trials,
            max_steps=max_steps,
            learning_rate=learning_rate,
            batch_size=batch_size,
        ),
        GateSettings(
            mode=gate_mode,
            metric=metric,
            max_regression=max_regression,
            confidence=confidence,
            max_samples=max_samples,
        ),
        choose_repeatable(device),
    )
    sys.stdout.write(json.dumps(result, ensure_ascii=False) + "\n")
