"""A small process that ends the components of a test when the test process dies, however it dies.

In: lines `+PID` and `-PID` on stdin. When stdin closes or the parent is gone, it kills what is listed and
exits. The kernel's parent-death signal would not do: it fires when the *thread* that started a component
ends, and fault tests restart components from threads.
"""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path


class Guardian:
    """The test process's side."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), str(os.getpid())],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def watch(self, pid: int) -> None:
        self._tell(f"+{pid}\n")

    def forget(self, pid: int) -> None:
        self._tell(f"-{pid}\n")

    def close(self) -> None:
        """End the guardian, which ends everything it still watches."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(timeout=30)

    def _tell(self, line: str) -> None:
        if self._process.stdin is not None:
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()


def watch_until_orphaned(parent: int) -> None:
    """Read orders until stdin closes or `parent` is gone, then kill what is still listed."""
    watched: set[int] = set()
    buffer = b""
    while os.getppid() == parent:
        readable, _, _ = select.select([0], [], [], 1.0)
        if not readable:
            continue
        received = os.read(0, 4096)
        if not received:
            break
        *lines, buffer = (buffer + received).split(b"\n")
        for line in lines:
            pid = int(line[1:])
            watched = watched | {pid} if line.startswith(b"+") else watched - {pid}
    for pid in watched:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    watch_until_orphaned(int(sys.argv[1]))
