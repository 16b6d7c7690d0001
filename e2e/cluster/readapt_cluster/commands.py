"""Run another program to its end, with its output kept for the error message."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from readapt_cluster.errors import CommandFailed


def run(
    argv: Sequence[str | Path],
    *,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout_s: float = 600.0,
) -> str:
    """Return stdout. Raises CommandFailed with the last lines of stderr; `env` adds to the environment."""
    named = " ".join(str(word) for word in argv[:4])
    try:
        done = subprocess.run(
            [str(word) for word in argv],
            input=stdin,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except FileNotFoundError:
        raise CommandFailed(f"{argv[0]}: not found on this machine") from None
    except subprocess.TimeoutExpired:
        raise CommandFailed(f"{named}: no end after {timeout_s:.0f} s") from None
    if done.returncode != 0:
        raise CommandFailed(f"{named}: exit {done.returncode}\n{last_lines(done.stderr or done.stdout)}")
    return done.stdout


def succeeds(argv: Sequence[str | Path]) -> bool:
    """Whether the program ran and returned 0."""
    try:
        run(argv)
    except CommandFailed:
        return False
    return True


def last_lines(text: str, count: int = 20) -> str:
    """The end of a log."""
    return "\n".join(text.rstrip().splitlines()[-count:])
