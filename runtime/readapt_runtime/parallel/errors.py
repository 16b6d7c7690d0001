"""What goes wrong with the other ranks.

TooFewDevices   Terminal     each rank needs a GPU of its own
WorkerRefused   Terminal     a worker cannot have its share: a person must change an input
WorkerDied      ReadaptError a worker ended, or does not answer: so does the pod (a bug, or the machine)
"""

from __future__ import annotations

from readapt_api.errors import ReadaptError, Terminal


class TooFewDevices(Terminal):
    """There are more ranks than GPUs."""


class WorkerRefused(Terminal):
    """A worker said at start what is wrong with its input."""


class WorkerDied(ReadaptError):
    """A worker process ended or does not answer; the process that needs it ends, too."""
