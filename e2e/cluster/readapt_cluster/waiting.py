"""Wait for something, always with a deadline."""

import time
from collections.abc import Callable

_POLL_S = 0.1


def until(ready: Callable[[], bool], timeout_s: float) -> bool:
    """Ask `ready` ten times a second until it says yes (True) or the time is over (False)."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if ready():
            return True
        time.sleep(_POLL_S)
    return ready()
