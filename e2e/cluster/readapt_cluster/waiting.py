"""Wait for something, always with a deadline."""

import time
from collections.abc import Callable


def until(ready: Callable[[], bool], timeout_s: float, every_s: float = 0.1) -> bool:
    """Ask `ready` every `every_s` seconds until it says yes (True) or the time is over (False)."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if ready():
            return True
        time.sleep(every_s)
    return ready()
