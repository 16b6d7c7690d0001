"""``python -m readapt_demo``: see --help."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

from readapt_api.errors import ReadaptError
from readapt_cluster.errors import ClusterError
from readapt_demo import models, promises, stage, table
from readapt_demo.kubectl import KubectlFailed
from readapt_demo.upgrade import DemoFailed, Show
from readapt_runtime.device import multiplies_bf16

_FILE_WIDTH = 120
"""Columns where the output goes into a file."""
_WAIT_S = 2 * 3600
"""A processor without bf16 products takes several times as long as one with them."""
_WAIT_FOR_YOUR_DATA_S = 4 * 3600
"""A gate costs as much as the data has labels and examples: nobody knows beforehand."""
_INTERRUPTED = 130
_CHECKOUT = Path(__file__).resolve().parents[3]


def main() -> int:
    """Runs the demo; exit code 0 when every promise held."""
    arguments = _parser().parse_args()
    try:
        return _run(arguments)
    except (ClusterError, DemoFailed, KubectlFailed, ReadaptError) as error:
        sys.stderr.write(f"error: {error}\n")
    except subprocess.CalledProcessError as error:
        sys.stderr.write(
            f"error: {shlex.join(map(str, error.cmd))} ended with {error.returncode}; its output is above\n"
        )
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; what is up stays up: `make cluster-down` takes it down\n")
        return _INTERRUPTED
    return 1


def _run(arguments: argparse.Namespace) -> int:
    stage.check_machine()
    if arguments.check:
        return 0
    if arguments.data is not None:
        models.check_data(arguments.data)
    console = Console(stderr=True, highlight=False)
    started = time.monotonic()

    def say(text: str) -> None:
        console.print(f"[dim]{time.monotonic() - started:6.0f} s[/] ", end="")
        console.print(text, markup=False, soft_wrap=True)

    cast = models.prepare(say, arguments.data)
    say("images (about 4 min the first time)")
    stage.build_images(_CHECKOUT)
    say("local cluster")
    stage.start_cluster(_CHECKOUT)
    kube = stage.kubectl(_CHECKOUT)
    store = stage.lay_out(cast, kube)
    say("helm upgrade --install readapt")
    stage.install(_CHECKOUT, kube)
    setup_seconds = time.monotonic() - started
    wait_s = _WAIT_S if arguments.data is None else _WAIT_FOR_YOUR_DATA_S
    machine = {"setup_seconds": round(setup_seconds, 1), "native_bf16": multiplies_bf16()}
    report = Show(cast, kube, store, say, wait_s).run() | machine
    _write(report, arguments.out)
    table.show(report, Console(width=None if sys.stdout.isatty() else _FILE_WIDTH))
    lines = promises.broken(report, generated=arguments.data is None)
    for line in lines:
        console.print(f"[red]not kept:[/] {line}")
    return 1 if lines else 0


def _write(report: dict[str, object], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "demo.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m readapt_demo",
        description="Upgrades a base model under two adapters on a local Kubernetes, under load, and rolls it back.",
        epilog="Needs root on Debian and about 40 GB of disk the first time; `make cluster-down` ends it.",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="train.jsonl, validation.jsonl and test.jsonl of {prompt, completion} for the adapter, instead of a"
        " generated task",
    )
    parser.add_argument("--check", action="store_true", help="only tell whether this machine can run it")
    parser.add_argument(
        "--out", type=Path, default=Path("out"), metavar="DIR", help="where demo.json goes (default: out)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
