"""``readapt adapt``: the adapt Job's work on directories. Imports nothing heavy, so that ``--help`` is quick."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Policy(StrEnum):
    """How far to go; ``Auto`` tries Copy, then ReLoRA."""

    AUTO = "Auto"
    COPY = "Copy"
    RELORA = "ReLoRA"


def adapt(
    old_base: Annotated[Path, typer.Option(metavar="DIR", help="The base that the adapter was made for.")],
    new_base: Annotated[Path, typer.Option(metavar="DIR", help="The base that it should work on.")],
    adapter: Annotated[Path, typer.Option(metavar="DIR", help="PEFT LoRA adapter.")],
    train: Annotated[Path, typer.Option(metavar="FILE", help="JSON Lines with prompt and completion.")],
    validation: Annotated[Path, typer.Option(metavar="FILE", help="For the search and for early stopping.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Gets the adapter that passed, and evidence.json.")],
    test: Annotated[
        Path | None, typer.Option(metavar="FILE", help="For the gate alone. Default: half of validation.")
    ] = None,
    policy: Annotated[Policy, typer.Option(help="Which ways to try.")] = Policy.AUTO,
    min_retention: Annotated[float, typer.Option(help="Share of Copy's retention to keep.", min=0, max=1)] = 0.9,
    max_regression: Annotated[float, typer.Option(help="Accuracy that may be lost; 0.03 are 3 points.")] = 0.03,
    max_samples: Annotated[int, typer.Option(help="Most examples that the gate looks at.", min=1)] = 3000,
    trials: Annotated[int, typer.Option(help="Points of the search.", min=4, max=64)] = 8,
    max_steps: Annotated[int, typer.Option(help="Most steps of tuning.", min=1)] = 300,
    learning_rate: Annotated[float, typer.Option(help="Of tuning.")] = 2e-4,
    batch_size: Annotated[int, typer.Option(help="Examples of one step of tuning.", min=1)] = 8,
    confidence: Annotated[float, typer.Option(help="Of the gate.", min=0.5, max=0.9999)] = 0.95,
) -> None:
    """Carry a LoRA adapter from one version of its base to another, and prove that it is as good as before.

    Prints one JSON object; `passed` says whether a variant passed the gate, its adapter is then in --out.

    Example:

      readapt adapt --old-base ./v1 --new-base ./v2 --adapter ./support --train train.jsonl
      --validation validation.jsonl --test test.jsonl --out ./support-v2
    """
    from readapt_api.jobs import AdaptationSettings, GateSettings
    from readapt_runtime.adapt.folders import Folders, adapt_folders

    result = adapt_folders(
        Folders(old_base, new_base, adapter, train, validation, test, out),
        AdaptationSettings(
            policy=policy.value,
            min_retention=f"{min_retention:g}",
            trials=trials,
            max_steps=max_steps,
            learning_rate=f"{learning_rate:g}",
            batch_size=batch_size,
        ),
        GateSettings(max_regression=f"{max_regression:g}", confidence=f"{confidence:g}", max_samples=max_samples),
    )
    sys.stdout.write(json.dumps(result, ensure_ascii=False) + "\n")
