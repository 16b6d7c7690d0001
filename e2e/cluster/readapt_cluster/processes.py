"""Start components, find them again, stop them.

A component is recognised by the state folder in its own command line, so nothing but the process table
has to be right after a crash: no pid files, no guesses about reused pids.
"""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from readapt_cluster.commands import last_lines
from readapt_cluster.waiting import until


@dataclass(frozen=True, slots=True)
class Component:
    """A program and how to run it."""

    name: str
    argv: tuple[str, ...]
    log: Path
    env: Mapping[str, str] | None = None

    def tail(self) -> str:
        """The end of the log, for error messages."""
        return last_lines(self.log.read_text(errors="replace")) if self.log.exists() else "(no log)"


@dataclass(frozen=True, slots=True)
class Running:
    """A live process."""

    pid: int
    argv: tuple[str, ...]
    started: float
    """Unix time."""

    @property
    def program(self) -> str:
        return Path(self.argv[0]).name if self.argv else ""


# Popen objects of live children: one that is dropped unwaited warns, and `alive` must reap its zombie.
_children: dict[int, "subprocess.Popen[bytes]"] = {}


def start(component: Component) -> int:
    """Start in a session of its own, so that it outlives this process; output goes to its log.

    Returns the pid.
    """
    component.log.parent.mkdir(parents=True, exist_ok=True)
    with component.log.open("ab") as log:
        child = subprocess.Popen(
            component.argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **(component.env or {})},
            cwd="/",
        )
    _children[child.pid] = child
    return child.pid


def everything() -> list[Running]:
    """All processes with a command line, kernel threads and zombies left out."""
    boot = _boot_time()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            argv = (entry / "cmdline").read_bytes().rstrip(b"\0").decode(errors="replace").split("\0")
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if argv == [""] or fields[0] == "Z":
            continue
        started = boot + int(fields[19]) / os.sysconf("SC_CLK_TCK")
        found.append(Running(int(entry.name), tuple(argv), started))
    return found


def of_state(programs: Iterable[str], folders: Sequence[Path]) -> list[Running]:
    """Processes of the named programs whose command line names one of the state folders."""
    wanted = set(programs)
    mark = re.compile("|".join(re.escape(str(folder)) + r"(?=[/,]|$)" for folder in folders))
    return [
        process
        for process in everything()
        if process.program in wanted and any(mark.search(word) for word in process.argv[1:])
    ]


def stop(pids: Sequence[int], grace_s: float = 5.0) -> None:
    """SIGTERM, then SIGKILL for what is left after `grace_s`; returns when all are gone."""
    _signal(pids, signal.SIGTERM)
    if not until(lambda: not any(alive(pid) for pid in pids), grace_s):
        _signal(pids, signal.SIGKILL)
        until(lambda: not any(alive(pid) for pid in pids), 10.0)


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not. Reaps children of this process."""
    child = _children.get(pid)
    if child is not None:
        if child.poll() is None:
            return True
        del _children[pid]
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def age(process: Running) -> str:
    """How long it has run, as `1h02m` or `3m04s`."""
    seconds = max(0, int(time.time() - process.started))
    hours, minutes = seconds // 3600, seconds // 60 % 60
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds % 60:02}s"


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def _boot_time() -> float:
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith("btime"):
            return float(line.split()[1])
    return 0.0
