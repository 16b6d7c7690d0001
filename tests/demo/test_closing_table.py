"""The table at the end of the demo, as it is printed."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from readapt_demo import table

ROW = {
    "name": "parcels",
    "origin": "ReLoRA",
    "score_before": 0.9123,
    "score_copy": 0.227,
    "score_after": 0.9,
    "interval": "[-0.0149, +0.0204]",
    "retention": 0.95,
    "repair_seconds": 61.4,
    "ready_seconds": 9,
    "report": "/store/results/" + "ab" * 32 + ".report.html",
}
REPORT = {
    "adapters": [ROW, dict.fromkeys(ROW) | {"name": "shifts"}],
    "requests": {"sent": 887, "failed": 2},
    "mixed_sets": 1,
    "rollback_jobs": 0,
    "upgrade_seconds": 700.4,
    "rollback_seconds": 24.0,
    "setup_seconds": 30.0,
    "steps": [{"name": "apply and first roll-out", "seconds": 61.5}],
}


def _shown(report: dict[str, Any]) -> list[str]:
    console = Console(file=io.StringIO(), width=120)
    table.show(report, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def _cells(name: str) -> list[str]:
    (line,) = [line for line in _shown(REPORT) if f" {name} " in line]
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_a_row_tells_what_the_move_did() -> None:
    assert _cells("parcels") == [
        *("parcels", "ReLoRA", "91.2 %", "22.7 %", "90.0 %", "-1.2 pt"),
        *("-1.5 to +2.0", "95.0 %", "61 s", "9 s"),
    ]


def test_what_is_not_known_is_a_dash() -> None:
    assert _cells("shifts") == ["shifts", *["–"] * 9]


def test_the_lines_below_tell_what_went_wrong() -> None:
    *_, requests, times, _, step = _shown(REPORT)
    assert requests.endswith("887 sent, 2 failed; answers of a mixed set: 1")
    assert times == "upgrade 700 s; roll-back 24 s with 0 Jobs; set-up 30 s"
    assert step.split() == ["apply", "and", "first", "roll-out", "61.5", "s"]


def test_the_page_of_a_repair_is_named_on_one_line_that_can_be_copied() -> None:
    assert [line for line in _shown(REPORT) if line.startswith("page")] == [f"page about parcels: {ROW['report']}"]
