"""What people see at the end, and the document that programs read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

Row = Mapping[str, Any]


def show(report: Mapping[str, Any], console: Console) -> None:
    """The table of adapters and the lines below it."""
    table = Table(title="A base upgrade, and what it did to the adapters", title_justify="left")
    for heading in (
        "adapter",
        "origin",
        "before",
        "copy",
        "after",
        "change",
        "interval",
        "retention",
        "repair",
        "ready",
    ):
        table.add_column(heading, justify="left" if heading in ("adapter", "origin") else "right")
    for row in report["adapters"]:
        table.add_row(*_cells(row))
    console.print(table)
    requests = report["requests"]
    console.print(
        f"requests while the base moved there and back: [bold]{requests['sent']}[/] sent,"
        f" [bold]{requests['failed']}[/] failed; answers of a mixed set: [bold]{report['mixed_sets']}[/]"
    )
    console.print(
        f"upgrade {report['upgrade_seconds']:.0f} s; roll-back {report['rollback_seconds']:.0f} s"
        f" with {report['rollback_jobs']} Jobs; set-up {report['setup_seconds']:.0f} s"
    )
    for row in report["adapters"]:
        if row["report"]:
            console.print(f"page about {row['name']}: {row['report']}", soft_wrap=True)
    for line in report.get("steps", ()):
        console.print(f"  [dim]{line['name']:<44} {line['seconds']:7.1f} s[/]")


def _cells(row: Row) -> Sequence[str]:
    change = _points(row["score_after"] - row["score_before"]) if _known(row) else "–"
    return (
        row["name"],
        row["origin"] or "–",
        _percent(row["score_before"]),
        _percent(row["score_copy"]),
        _percent(row["score_after"]),
        change,
        _interval(row["interval"]),
        _percent(row["retention"]),
        _seconds(row["repair_seconds"]),
        _seconds(row["ready_seconds"]),
    )


def _known(row: Row) -> bool:
    return row["score_after"] is not None and row["score_before"] is not None


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _points(change: float) -> str:
    return f"{100 * change:+.1f} pt"


def _interval(text: str | None) -> str:
    """Of the change, as the status has it: ``[-0.0149, +0.0204]``."""
    return "–" if text is None else " to ".join(f"{100 * float(end):+.1f}" for end in text.strip("[]").split(","))


def _seconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds:.0f} s"
