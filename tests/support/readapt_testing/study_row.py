"""A row of the study with everything in it; ``benchmarks/adaptation`` has to be on the path."""

from __future__ import annotations

from typing import Any

from study_rows import Row


def row(way: str, seed: int = 0, **more: Any) -> Row:
    """Facts that are not given are those of one case."""
    facts: dict[str, Any] = {
        "move": "harder",
        "task": "intents",
        "size": 200,
        "old_score": 0.9,
        "of_copy": 0.97,
        "shared": {"old answers": 10.0},
        "seconds": 100.0,
        "passed": True,
        "score": 0.9,
        "retention": 0.9,
        "curve": [],
        "steps": 0,
        "origin": way,
        "parts": {},
    }
    return Row(way=way, seed=seed, **{**facts, **more})
