"""``readapt train``: the train Job's work on directories. Imports nothing heavy, so that ``--help`` is quick."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from readapt_api.adaptation import Metric
from readapt_api.bounds import ALPHA, BATCH_SIZE, LEARNING_RATE, MAX_STEPS, RANK
from readapt_runtime.adapt.command import decimal_option, whole_option
from readapt_runtime.out_folder import OUT_RULE


def train(
    base: Annotated[Path, typer.Option(metavar="DIR", help="The base model.")],
    train: Annotated[Path, typer.Option(metavar="FILE", help="JSON Lines with prompt and completion.")],
    validation: Annotated[Path, typer.Option(metavar="FILE", help="For early stopping.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help=f"Gets the PEFT adapter and evidence.json. {OUT_RULE}")],
    test: Annotated[
        Path | None, typer.Option(metavar="FILE", help="For the score alone. Default: half of validation.")
    ] = None,
    rank: Annotated[int, whole_option("Of every module.", RANK)] = 8,
    alpha: Annotated[int, whole_option("The adapter is scaled by alpha / rank.", ALPHA)] = 16,
    target_modules: Annotated[
        str, typer.Option(metavar="NAMES", help="Such as q_proj,v_proj. Default: all of the decoder layers.")
    ] = "",
    max_steps: Annotated[int, whole_option("Most steps.", MAX_STEPS)] = 600,
    learning_rate: Annotated[str, decimal_option("Its peak.", LEARNING_RATE)] = "1e-3",
    batch_size: Annotated[int, whole_option("Examples of one step.", BATCH_SIZE)] = 16,
    metric: Annotated[Metric, typer.Option(help="Decides when to stop; not Agreement.")] = Metric.ACCURACY,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Train a LoRA adapter from examples alone; the checkpoint that is best on validation is kept.

    Prints one JSON object with its score and that of the base alone.

    Example: `readapt train --base ./v1 --train train.jsonl --validation validation.jsonl --out ./support`
    """
    if not metric.needs_labels:
        raise typer.BadParameter("there is nobody to agree with", param_hint="--metric")
    from readapt_runtime.device import choose_repeatable
    from readapt_runtime.training.folders import Folders, train_folders

    result = train_folders(
        Folders(base, train, validation, test, out),
        choose_repeatable(device),
        rank=rank,
        alpha=alpha,
        target_modules=tuple(name for name in target_modules.split(",") if name),
        max_steps=max_steps,
        learning_rate=learning_rate,
        batch_size=batch_size,
        metric=metric,
    )
    sys.stdout.write(json.dumps(result, ensure_ascii=False) + "\n")
