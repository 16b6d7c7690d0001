"""Examples of a task as users write them: JSON Lines with a prompt and, unless they are mere inputs, a completion.

In: a file of one split. Out: its texts, one line at a time. Next: ``fetch`` stores them under one pair of keys,
adaptation divides them into splits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from readapt_api.errors import Terminal

_MAX_LINE = 1 << 20
_MAX_EXAMPLES = 2_000_000


class BadData(Terminal):
    """Examples that cannot be used as they are: a file is missing, a line is none, there are too few or too many."""


def read_pairs(
    path: Path, name: str, prompt: str = "prompt", completion: str = "completion"
) -> Iterator[tuple[str, str]]:
    """(prompt, completion) of each line that is not blank, from under these two keys.

    Raises BadData with ``name``, which is what the user calls the file, and the number of the line.
    """
    for row, where in _rows(path, name):
        yield _text(row, prompt, where), _text(row, completion, where)


def read_prompts(path: Path, name: str, prompt: str = "prompt") -> Iterator[str]:
    """The prompt of each line that is not blank, whatever else it holds; raises as ``read_pairs``."""
    for row, where in _rows(path, name):
        yield _text(row, prompt, where)


def _rows(path: Path, name: str) -> Iterator[tuple[dict[str, object], str]]:
    """Each line that is not blank, and where it stands."""
    with path.open("rb") as stream:
        for number, line in enumerate(iter(lambda: stream.readline(_MAX_LINE + 1), b""), start=1):
            where = f"{name} line {number}"
            if number > _MAX_EXAMPLES or len(line) > _MAX_LINE:
                raise BadData(f"{where}: more than {_MAX_EXAMPLES} lines, or one longer than {_MAX_LINE} bytes")
            if line.strip():
                yield _parse(line, where), where


def _parse(line: bytes, where: str) -> dict[str, object]:
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadData(f"{where}: not JSON in UTF-8: {str(error)[:120]}") from error
    if not isinstance(row, dict):
        raise BadData(f"{where}: not a JSON object")
    return row


def _text(row: dict[str, object], field: str, where: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        raise BadData(f"{where}: needs a text under {field!r}; its keys are {sorted(row)[:8]}")
    try:
        value.encode("utf-8")  # JSON's escapes can spell strings that no encoding can write
    except UnicodeEncodeError:
        raise BadData(f"{where}: {field!r} holds half a surrogate pair") from None
    return value
