"""One Job, run again and again, stopped at each of the moments at which it makes something durable.

``python -m readapt_testing.mortal_job DEATH EVERY STORE REQUEST SCRATCH [SECONDS]`` prints one JSON object. Every run
works on its own copy of ``STORE`` and saves what it trains every ``SECONDS``, by default as it ships. The first is
undisturbed and tells the renames, which are the points; then for every ``EVERY``-th point one run is stopped right
before it, and another one goes on from what is left. ``DEATH`` is ``SIGKILL``, ``SIGTERM`` or ``full`` (the disk has no
space left at that point). A process that has imported everything forks the runs.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from readapt_api.jobs import JobKind
from readapt_runtime.adapt import journal
from readapt_runtime.adapt.training import Descent
from readapt_runtime.jobs import adapt, drift, extract, fetch, learn, main, train

__all__ = ["adapt", "drift", "extract", "fetch", "learn", "train"]
_Rename = Callable[..., None]


@dataclass(frozen=True, slots=True)
class Run:
    """What one run left behind."""

    code: int
    """Exit code, or minus the signal that ended it."""
    summary: dict[str, Any]
    events: list[dict[str, Any]]
    """Its log."""
    renames: list[str]
    """Into the store, relative to its root; the temporary names' targets."""
    steps: int
    """Of training, taken in this run."""
    leftovers: list[str]
    """In the store's tmp/ and progress/ afterwards."""


@dataclass(frozen=True, slots=True)
class Life:
    """A run that was stopped before its rename ``at``, and the one that went on."""

    at: int
    stopped: Run
    again: Run


def live(death: str, every: int, store: Path, request: Path, scratch: Path) -> dict[str, object]:
    """The undisturbed run and the lives of all points."""
    undisturbed = _run(_copy(store, scratch / "undisturbed"), request, scratch / "log", None, 0)
    lives = []
    for at in range(0, len(undisturbed.renames), every):
        copy = _copy(store, scratch / f"{death}-{at}")
        stopped = _run(copy, request, scratch / "log", death, at)
        lives.append(Life(at, stopped, _run(copy, request, scratch / "log", None, 0)))
        shutil.rmtree(copy)
    return {"undisturbed": asdict(undisturbed), "lives": [asdict(life) for life in lives]}


def _copy(store: Path, target: Path) -> Path:
    return Path(shutil.copytree(store, target))


def _run(store: Path, request: Path, notes: Path, death: str | None, at: int) -> Run:
    shutil.rmtree(notes, ignore_errors=True)
    notes.mkdir()
    child = os.fork()
    if child == 0:
        os._exit(_job(store, request, notes, death, at))
    _, status = os.waitpid(child, 0)
    message = notes / "message"
    return Run(
        code=os.waitstatus_to_exitcode(status),
        summary=json.loads(message.read_bytes()) if message.is_file() else {},
        events=[json.loads(line) for line in (notes / "stderr").read_text().splitlines()],
        renames=_lines(notes / "renames"),
        steps=len(_lines(notes / "steps")),
        leftovers=[
            str(path.relative_to(store)) for name in ("tmp", "progress") for path in (store / name).glob("[!.]*")
        ],
    )


def _job(store: Path, request: Path, notes: Path, death: str | None, at: int) -> int:
    """In the child: the Job with its output in ``notes``, and with what stops it."""
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(notes / name, os.O_WRONLY | os.O_CREAT, 0o600), descriptor)
    renames = _Renames(store, notes / "renames", death, at)
    os.replace, os.rename = renames.watch(os.replace), renames.watch(os.rename)
    Descent.step = _counted(Descent.step, notes / "steps")  # type: ignore[method-assign]
    kind = JobKind(json.loads(request.read_bytes())["kind"])
    arguments = [kind, "--request", str(request), "--store", str(store), "--termination-log", str(notes / "message")]
    code = main.run(arguments)
    sys.stderr.flush()
    return code


@dataclass(slots=True)
class _Renames:
    """Notes every rename into the store; stops the process right before one of them."""

    store: Path
    notes: Path
    death: str | None
    at: int
    seen: int = 0

    def watch(self, rename: _Rename) -> _Rename:
        def watched(source: Any, target: Any) -> None:
            if Path(target).is_relative_to(self.store) and not Path(target).is_relative_to(self.store / "tmp"):
                self._meet(Path(target))
            rename(source, target)

        return watched

    def _meet(self, target: Path) -> None:
        _append(self.notes, str(target.relative_to(self.store)))
        self.seen += 1
        if self.death is None or self.seen != self.at + 1:
            return
        if self.death == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.kill(os.getpid(), signal.Signals[self.death])


def _counted(step: Callable[..., None], notes: Path) -> Callable[..., None]:
    def counted(descent: Descent, loss: Any) -> None:
        step(descent, loss)
        _append(notes, "step")

    return counted


def _append(path: Path, line: str) -> None:
    with path.open("a") as stream:
        stream.write(line + "\n")


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


if __name__ == "__main__":
    folders = [Path(argument) for argument in sys.argv[3:6]]
    if len(sys.argv) > 6:
        journal.SAVE_EVERY_S = float(sys.argv[6])
    sys.stdout.write(json.dumps(live(sys.argv[1], int(sys.argv[2]), *folders)) + "\n")
