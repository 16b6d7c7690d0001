"""Progress lines on stderr: what a slow step does, how long it usually takes, how long it took."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_START = time.monotonic()
_HEARTBEAT_S = 20.0


def say(line: str) -> None:
    """One line on stderr, after the seconds since the command began."""
    sys.stderr.write(f"[{time.monotonic() - _START:6.1f} s] {line}\n")
    sys.stderr.flush()


@contextmanager
def step(what: str, usually: str = "") -> Iterator[None]:
    """Announce a slow step, say every 20 s that it still runs, and report what it took."""
    say(f"{what} (usually {usually})" if usually else what)
    begun = time.monotonic()
    done = threading.Event()

    def heartbeat() -> None:
        while not done.wait(_HEARTBEAT_S):
            say(f"  still {what[0].lower()}{what[1:]}: {time.monotonic() - begun:.0f} s")

    beat = threading.Thread(target=heartbeat, daemon=True)
    beat.start()
    try:
        yield
        outcome = "done"
    except BaseException:
        outcome = "failed"
        raise
    finally:
        done.set()
        beat.join()
        say(f"  {outcome} after {time.monotonic() - begun:.1f} s")
