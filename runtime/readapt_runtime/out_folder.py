"""The folder that ``--out`` of a command names.

Made and judged before the work begins: a run of hours must not end at a path that cannot be written, and what an
earlier run left must not be taken for the result of this one.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from readapt_api.errors import Terminal

OUT_RULE = "Must be new or empty."
"""For the help of every command that has it."""
PROGRESS = ".progress"
"""Hidden in it while the work goes on: the store of a run that may have to go on later."""


class BadOut(Terminal):
    """--out cannot take the result of this run."""


def make_out(out: Path) -> None:
    """Makes ``out``. Raises BadOut when it is no folder, cannot be written or holds files; hidden ones do not count."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
        there = sorted(entry.name for entry in out.iterdir() if not entry.name.startswith("."))
    except FileExistsError:
        raise BadOut(f"--out {out}: there is a file of that name") from None
    except OSError as error:
        raise BadOut(f"--out {out}: cannot be written: {error.strerror}") from error
    if there:
        raise BadOut(f"--out {out}: not empty, {there[0]} is there; name a new folder, or empty this one")
