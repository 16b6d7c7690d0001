"""``readapt learn``: the learn Job's work on directories. Imports nothing heavy, so that ``--help`` is quick."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from readapt_api.bounds import BATCH_SIZE, LEARNING_RATE, MAX_STEPS, RANK
from readapt_runtime.adapt.command import decimal_option, whole_option

_OUT = "Gets the PEFT adapter and what later runs go on from: new, empty, or of a run that learned the first tasks."


def learn(
    base: Annotated[Path, typer.Option(metavar="DIR", help="The base model.")],
    task: Annotated[
        list[str], typer.Option(metavar="NAME=FILE", help="JSON Lines with prompt and completion; in this order.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help=_OUT)],
    rank: Annotated[int, whole_option("Of each task's directions.", RANK)] = 8,
    max_rank: Annotated[int, whole_option("Of the adapter that is served.", RANK)] = 64,
    max_steps: Annotated[int, whole_option("Of each task.", MAX_STEPS)] = 300,
    learning_rate: Annotated[str, decimal_option("Its peak.", LEARNING_RATE)] = "1e-3",
    batch_size: Annotated[int, whole_option("Examples of one step.", BATCH_SIZE)] = 16,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Learn task after task into one LoRA adapter, without the examples of earlier tasks (SD-LoRA).

    A tenth of each task's prompts is set aside to say how much is remembered. Prints one JSON object. Run again with
    one more --task and the same --out, and only that one is learned.

    Example: `readapt learn --base ./v1 --task cards=cards.jsonl --task transfers=transfers.jsonl --out ./support`
    """
    from readapt_runtime.continual.folders import learn_folders
    from readapt_runtime.device import choose_repeatable

    result = learn_folders(
        base,
        task,
        out,
        max_rank,
        choose_repeatable(device),
        rank=rank,
        max_steps=max_steps,
        learning_rate=learning_rate,
        batch_size=batch_size,
    )
    sys.stdout.write(json.dumps(result, ensure_ascii=False) + "\n")
