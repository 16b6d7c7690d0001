"""``python -m readapt_demo``: see --help."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from readapt_demo import models, stage, table
from readapt_demo.upgrade import Show

_CHECKOUT = Path(__file__).resolve().parents[3]


def main() -> int:
    """Runs the demo; exit code 0 when every promise held."""
    arguments = _parser().parse_args()
    console = Console(stderr=True, highlight=False)
    started = time.monotonic()

    def say(text: str) -> None:
        console.print(f"[dim]{time.monotonic() - started:6.0f} s[/] ", end="")
        console.print(text, markup=False)

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
    report = Show(cast, kube, store, say).run() | {"setup_seconds": round(setup_seconds, 1)}
    _write(report, arguments.out)
    table.show(report, Console())
    return 0 if _kept(report) else 1


def _kept(report: dict[str, Any]) -> bool:
    """Whether nothing was lost or mixed, and whether the answers could have shown it."""
    requests = report["requests"]
    told: bool = min(requests["telling"].values()) > 0
    lost = requests["failed"], report["mixed_sets"], report["rollback_jobs"]
    return told and not any(lost)


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
    parser.add_argument(
        "--out", type=Path, default=Path("out"), metavar="DIR", help="where demo.json goes (default: out)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
