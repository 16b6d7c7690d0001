"""``readapt-job KIND --request FILE``: the entry point of every Job.

In: one request. Out: its result in the store, a ``Summary`` as the container's termination message and on standard
output, JSON lines on standard error, and an exit code of ``readapt_api.errors``. Next: the operator reads the message.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from pydantic import TypeAdapter, ValidationError

from readapt_api.errors import EXIT_BAD_INPUT, EXIT_BUG, EXIT_OK, ReadaptError, Terminal, Transient
from readapt_api.jobs import (
    STORE_MOUNT,
    AdaptRequest,
    DriftRequest,
    ExtractRequest,
    FetchRequest,
    JobKind,
    LearnRequest,
    Request,
    Summary,
    TrainRequest,
)
from readapt_runtime.jobs.recorded import recorded
from readapt_runtime.jobs.summary import failure, write
from readapt_runtime.progress import JsonLog, Log
from readapt_runtime.store import Store

_TERMINATION_LOG = "/dev/termination-log"
_MAX_REQUEST_BYTES = 1 << 20


class BadRequest(Terminal):
    """The request document is missing or is not one of the contract."""


class OutOfMemory(Transient):
    """An allocation failed; the Job may fit where less else is running."""


class Terminated(Transient):
    """The kubelet asked the Job to stop."""


class _StopAsked(BaseException):
    """Raised by SIGTERM; no ``except Exception`` of a library on the way catches it."""


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Runs one Job and returns its exit code; errors are logged and summarised, never raised."""
    try:
        options = _parse(arguments)
    except SystemExit as leaving:
        # argparse has said why; its code for a wrong command line is bad input in ours.
        return EXIT_BAD_INPUT if leaving.code else EXIT_OK
    kind, log = JobKind(options.kind), JsonLog(sys.stderr)
    signal.signal(signal.SIGTERM, _stop)
    try:
        summary, code = answer(_read_request(kind, options.request), Store(options.store), log), EXIT_OK
    except ReadaptError as error:
        summary, code = failure(kind, error), error.exit_code
        log.error("failed", reason=type(error).__name__, message=str(error), exit_code=code)
    except _StopAsked:
        stopped = Terminated("stopped by SIGTERM before the work was done")
        summary, code = failure(kind, stopped), stopped.exit_code
        log.error("stopped", exit_code=code)
    except Exception as error:  # noqa: BLE001 - the loop top of a Job: what nobody foresaw is logged as a bug
        if _is_short_of_memory(error):
            short = OutOfMemory(f"not enough memory: {str(error)[:300]}")
            summary, code = failure(kind, short), short.exit_code
            log.error("failed", reason="OutOfMemory", message=str(error), exit_code=code)
        else:
            summary, code = failure(kind, error), EXIT_BUG
            log.error("bug", message=repr(error), traceback=traceback.format_exc(), exit_code=code)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _leave(summary, options.termination_log, log)
    return code


def _is_short_of_memory(error: Exception) -> bool:
    """That of the machine, or of its GPU; torch need not be loaded yet."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def answer(request: Request, store: Store, log: Log) -> Summary:
    """The recorded result of an equal Job, or the work. Heavy imports happen behind the record."""
    found = recorded(request, store)
    if found is not None:
        log.info("already done", kind=request.kind.value)
        for outcome in found.outcomes:
            store.drop_progress(outcome.input_hash)
        return found
    log.info("started", kind=request.kind.value)
    match request:
        case FetchRequest():
            from readapt_runtime.jobs.fetch import run as fetch

            return Summary(kind=JobKind.FETCH, ok=True, fetch=fetch(request, store, log))
        case DriftRequest():
            from readapt_runtime.jobs.drift import run as drift

            return Summary(kind=JobKind.DRIFT, ok=True, drift=drift(request, store, log))
        case ExtractRequest():
            from readapt_runtime.jobs.extract import run as extract

            return Summary(kind=JobKind.EXTRACT, ok=True, outcomes=(extract(request, store, log),))
        case TrainRequest():
            from readapt_runtime.jobs.train import run as train

            return Summary(kind=JobKind.TRAIN, ok=True, outcomes=(train(request, store, log),))
        case LearnRequest():
            from readapt_runtime.jobs.learn import run as learn

            return Summary(kind=JobKind.LEARN, ok=True, outcomes=(learn(request, store, log),))
        case AdaptRequest():
            from readapt_runtime.jobs.adapt import run as adapt

            return Summary(kind=JobKind.ADAPT, ok=True, outcomes=adapt(request, store, log))


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="readapt-job", description="Runs one Job of Readapt.")
    parser.add_argument("kind", choices=[kind.value for kind in JobKind])
    parser.add_argument("--request", type=Path, required=True, help="JSON document of readapt_api.jobs")
    parser.add_argument("--store", type=Path, default=Path(STORE_MOUNT), help=f"default {STORE_MOUNT}")
    parser.add_argument("--termination-log", type=Path, default=Path(_TERMINATION_LOG), help=_TERMINATION_LOG)
    return parser.parse_args(arguments)


def _read_request(kind: JobKind, path: Path) -> Request:
    try:
        with path.open("rb") as stream:
            content = stream.read(_MAX_REQUEST_BYTES)
        request: Request = TypeAdapter[Request](Request).validate_json(content)
    except OSError as error:
        raise BadRequest(f"{path}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise BadRequest(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    if request.kind is not kind:
        raise BadRequest(f"{path}: a request of kind {request.kind.value}, not {kind.value}")
    return request


def _leave(summary: Summary, path: Path, log: JsonLog) -> None:
    """The message, also on standard output; a runtime without a termination log is worth a warning, not more."""
    try:
        message = write(summary, path)
    except OSError as error:
        message = write(summary, Path(os.devnull))
        log.warning("no termination log", path=str(path), message=str(error))
    sys.stdout.write(message.decode() + "\n")
    sys.stdout.flush()


def _stop(_signal: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _StopAsked
