"""What goes wrong with the other ranks.

WorkerRefused   Terminal     a worker cannot have its share: a person must change an input
WorkerDied      ReadaptError a worker ended, or does not answer: so does the pod (a bug, or the machine)
"""

from __future__ import annotations

from readapt_api.errors import ReadaptError, Terminal


class WorkerRefused(Terminal):
    """A worker said at start what is wrong with its input."""


class WorkerDied(ReadaptError):
    """A worker process ended or does not answer; the process that needs it ends, too."""
