"""``readapt``: the same work as the Jobs', on directories, for people without a cluster.

Each command prints one JSON object on standard output; progress and messages go to standard error. Exit codes: 0 done,
64 something about the input must be changed, 75 try again. Heavy imports happen inside the commands.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from readapt_api.errors import EXIT_BAD_INPUT, EXIT_BUG, EXIT_OK, ReadaptError
from readapt_runtime.adapt.command import adapt
from readapt_runtime.continual.command import learn
from readapt_runtime.out_folder import OUT_RULE
from readapt_runtime.server.command import serve
from readapt_runtime.training.command import train

app = typer.Typer(
    name="readapt",
    help="Keeps LoRA adapters alive when their base model moves.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

_USAGE_ERROR = 2

app.command()(serve)
app.command()(train)
app.command()(learn)
app.command()(adapt)


@app.command()
def digest(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="A folder, or a single file.")],
) -> None:
    """Prints the digest of a source, to be pinned in `spec.…source.digest`.

    Example: `readapt digest ./smollm2-v2`
    """
    from readapt_api.digest import digest_path

    _print({"digest": digest_path(path), "path": str(path)})


@app.command()
def drift(
    old: Annotated[Path, typer.Option("--from", metavar="DIR", help="The base as it was.")],
    new: Annotated[Path, typer.Option("--to", metavar="DIR", help="The base as it is now.")],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help=f"Gets drift.safetensors, drift.json, report.html. {OUT_RULE}")
    ],
    adapter: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="PEFT LoRA adapter of the old base: where does the change meet it?"),
    ] = None,
    examples: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="JSON Lines with prompt and completion, for --adapter: 32 of them are asked."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="Of --examples: auto, cpu or cuda.")] = "auto",
) -> None:
    """Measures what changed between two versions of a base, per linear module.

    With `--adapter` it tells too how much of the change lies where that adapter reads and writes; with `--examples`,
    how likely right answers are before the change and, if its weights are copied, after it. Where a law has been fitted
    to these, it foretells from them how many points of Accuracy a copy would lose, with the mean error of such
    predictions.

    Examples:

      readapt drift --from ./v1 --to ./v2 --out ./drift

      readapt drift --from ./v1 --to ./v2 --out ./drift --adapter ./support --examples validation.jsonl
    """
    from readapt_runtime.device import choose_repeatable
    from readapt_runtime.drift.command import run

    _print(run(old, new, out, choose_repeatable(device), adapter, examples))


@app.command()
def extract(
    base: Annotated[Path, typer.Option(metavar="DIR", help="The base that was fine-tuned.")],
    finetuned: Annotated[Path, typer.Option(metavar="DIR", help="The full fine-tuned checkpoint.")],
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", help=f"Gets the PEFT adapter, sidecar, report.json, report.html. {OUT_RULE}"),
    ],
    rank: Annotated[
        int | None,
        typer.Option(metavar="N", help="One rank for every module: 8, 16, 32, 64 …, or rounded up to these."),
    ] = None,
    energy: Annotated[
        float | None, typer.Option(metavar="X", help="Share of each module's change to keep, 0 to 1.")
    ] = None,
    relative_error: Annotated[
        float | None, typer.Option(metavar="X", help="What each module may miss of its change, 0 to 1.")
    ] = None,
    budget: Annotated[
        int | None, typer.Option(metavar="N", help="Parameters of the whole adapter; its modules compete for them.")
    ] = None,
    max_rank: Annotated[int, typer.Option(metavar="N", help="No module gets more than this.")] = 64,
    merged_base: Annotated[
        bool,
        typer.Option("--merged-base", help="Writes a base too that holds what no adapter can: for this one alone."),
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Makes a LoRA adapter out of a full fine-tuned checkpoint, without data.

    Example:

      readapt extract --base ./v1 --finetuned ./support --out ./support-lora --rank 16

    In place of `--rank 16` one of `--energy 0.9`, `--relative-error 0.3` and `--budget 4000000`.
    """
    from readapt_runtime.device import choose_device
    from readapt_runtime.extract import Options, RankPolicy
    from readapt_runtime.extract.command import run

    policy = RankPolicy(rank, energy, relative_error, budget, max_rank)
    _print(run(base, finetuned, out, policy, Options(choose_device(device), merged_base)))


@app.command()
def report(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="An --out of a command, or a file of evidence.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Default: report.html in DIR, or beside the file.")
    ] = None,
) -> None:
    """Draws what a command or a Job did, as one page that loads nothing.

    Examples:

      readapt report ./support-v2

      readapt report store/results/3f2a….evidence.json --out support.html
    """
    from readapt_runtime.report.command import run

    _print(run(path, out))


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit code; that of a bug is 70, after its traceback.

    What a file or its name brings up (OSError, UnicodeError) is the input's, wherever it was noticed.
    """
    try:
        app(list(arguments), prog_name="readapt")
    except ReadaptError as error:
        sys.stderr.write(f"readapt: {type(error).__name__}: {error}\n")
        return error.exit_code
    except (OSError, UnicodeError) as error:
        sys.stderr.write(f"readapt: {type(error).__name__}: {' '.join(str(error).split())}\n")
        return EXIT_BAD_INPUT
    except SystemExit as leaving:
        # typer leaves this way always; its code for a wrong command line is bad input in ours.
        return EXIT_BAD_INPUT if leaving.code == _USAGE_ERROR else int(leaving.code or EXIT_OK)
    except Exception:  # noqa: BLE001 - the top of the program
        sys.stderr.write(traceback.format_exc())
        return EXIT_BUG
    return EXIT_OK


def _print(result: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(result, ensure_ascii=False) + "\n")
