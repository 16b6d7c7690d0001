"""Errors of every package, in three meanings.

    ReadaptError
    ├── Transient   try again: a source, the store or the API server did not answer    exit code 75
    ├── Terminal    a person must act: bad input, wrong digest, shapes that do not fit exit code 64
    └── (anything else that is raised is a bug and crashes)                            exit code 70

Packages derive their own errors from the first two.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_BAD_INPUT = 64
EXIT_BUG = 70
EXIT_TRY_AGAIN = 75

LOST_ARTIFACT = ("MissingArtifact", "CorruptArtifact")
"""Reasons in a Job's summary: the store lost what an earlier Job had put there. Names of the store's errors."""


class ReadaptError(Exception):
    """Base of all errors that Readapt raises on purpose."""

    exit_code = EXIT_BUG


class Transient(ReadaptError):
    """The same call may succeed later."""

    exit_code = EXIT_TRY_AGAIN


class Terminal(ReadaptError):
    """The same call fails again until a person changes an input."""

    exit_code = EXIT_BAD_INPUT
