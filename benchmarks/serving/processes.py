"""Servers as processes on loopback, pinned to cores of their own: started, awaited, weighed, ended."""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

READY_TIMEOUT_S = 1800.0
_POLL_S = 0.02
_WEIGH_S = 1.0
"""Between looks at the memory of a server that starts: each look costs it some time."""
_STOP_S = 30.0
_TAIL_CHARS = 3000
MAX_MODEL_LEN = 512


class ServerFailed(Exception):
    """A server that ended, outgrew its memory or was not ready in time; the text has the end of its log."""


@dataclass(frozen=True, slots=True)
class Server:
    """One that answers."""

    name: str
    url: str
    admin: str
    """Where adapters are loaded by hand."""
    pid: int
    ready_s: float
    """From the start of the process to the first 200 of its readiness."""
    ready_cpu_s: float
    """Its processor time until then."""

    def private_bytes(self) -> int:
        """Resident memory that ending the server would free, its children's included."""
        return private_bytes(self.pid)

    def cpu_seconds(self) -> float:
        """Processor time until now."""
        return cpu_seconds(self.pid)


@dataclass(frozen=True, slots=True)
class Cores:
    """Those of the server; the client gets the others, where there are any."""

    server: tuple[int, ...]
    client: tuple[int, ...]

    @classmethod
    def split(cls, threads: int) -> Cores:
        """The first ``threads`` cores of this process are the server's."""
        mine = sorted(os.sched_getaffinity(0))
        return cls(tuple(mine[:threads]), tuple(mine[threads:]) or tuple(mine))


@dataclass(frozen=True, slots=True)
class Launch:
    """How servers are started in this run."""

    base: Path
    cores: Cores
    memory_limit: int
    """Private bytes after which a server is ended instead of the machine."""
    model_len: int = MAX_MODEL_LEN

    @contextmanager
    def readapt(self, adapters: Mapping[str, Path], *options: str, command: Sequence[str] = ()) -> Iterator[Server]:
        """``readapt serve`` in bfloat16 with these adapters; ``command`` in place of the one of this environment."""
        program = list(command) or [str(Path(sys.executable).with_name("readapt"))]
        arguments = [*program, "serve", "--base", str(self.base), "--served-name", "base", "--dtype", "bfloat16"]
        arguments += ["--port", "0", "--admin-port", "0", "--max-model-len", str(self.model_len), *options]
        arguments += [f"--adapter={name}={folder}" for name, folder in adapters.items()]
        with self._run("Readapt", arguments, {}, None, "/readyz") as server:
            yield server

    @contextmanager
    def vllm(self, python: Path, adapters: Mapping[str, Path], max_rank: int, slots: int = 0) -> Iterator[Server]:
        """vLLM's own server for the same base and adapters, with a slot for each, or with so many."""
        port = _free_port()
        arguments = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.base)]
        arguments += ["--served-model-name", "base", "--dtype", "bfloat16", "--max-model-len", str(self.model_len)]
        arguments += ["--host", "127.0.0.1", "--port", str(port), "--enable-lora"]
        arguments += ["--max-loras", str(slots or len(adapters)), "--max-cpu-loras", str(len(adapters))]
        arguments += ["--max-lora-rank", str(max_rank), "--lora-modules"]
        arguments += [f"{name}={folder}" for name, folder in adapters.items()]
        extra: dict[str, str] = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
        url = f"http://127.0.0.1:{port}"
        with self._run("vLLM", arguments, extra, (url, url), "/health") as server:
            yield server

    @contextmanager
    def _run(
        self,
        name: str,
        arguments: list[str],
        environment: dict[str, str],
        addresses: tuple[str, str] | None,
        ready_path: str,
    ) -> Iterator[Server]:
        """Without ``addresses`` the server says them on its standard output."""
        threads = str(len(self.cores.server))
        fixed = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"}
        pinned = ["taskset", "-c", ",".join(map(str, self.cores.server)), *arguments]
        with tempfile.TemporaryFile("w+") as log:
            started = time.monotonic()
            out = log if addresses else subprocess.PIPE
            process = subprocess.Popen(pinned, stdout=out, stderr=log, text=True, env=os.environ | fixed | environment)
            try:
                url, admin = addresses or _announced(process)
                self._await_ready(process, url + ready_path)
                yield Server(name, url, admin, process.pid, time.monotonic() - started, cpu_seconds(process.pid))
            except ServerFailed as error:
                log.seek(0)
                raise ServerFailed(f"{name}: {error}\n{log.read()[-_TAIL_CHARS:]}") from error
            finally:
                _end(process)

    def _await_ready(self, process: subprocess.Popen[str], url: str) -> None:
        started = weighed = time.monotonic()
        with httpx.Client(timeout=5.0) as http:
            while not _answers(http, url):
                if process.poll() is not None:
                    raise ServerFailed(f"ended with {process.returncode}")
                if time.monotonic() - weighed > _WEIGH_S:
                    self._weigh(process.pid)
                    weighed = time.monotonic()
                if time.monotonic() - started > READY_TIMEOUT_S:
                    raise ServerFailed(f"not ready within {READY_TIMEOUT_S:g} s")
                time.sleep(_POLL_S)

    def _weigh(self, pid: int) -> None:
        if (held := private_bytes(pid)) > self.memory_limit:
            allowed = self.memory_limit >> 20
            raise ServerFailed(f"{held >> 20} MiB private before it was ready, allowed are {allowed}")


def thread_seconds(pid: int) -> dict[int, float]:
    """Processor time of each thread of a process by its id, in steps of 10 ms; that of the main thread is ``pid``."""
    return {thread.id: thread.user_time + thread.system_time for thread in psutil.Process(pid).threads()}


def base_folder(text: str) -> Path:
    """For argparse: a folder with a model."""
    if not Path(text, "config.json").is_file():
        raise argparse.ArgumentTypeError(f"{text}: no folder of a model: it has no config.json")
    return Path(text)


def positive(text: str) -> int:
    """For argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number from 1 on")
    return int(text)


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """What every benchmark of servers is told."""
    parser.add_argument("--base", type=base_folder, required=True, metavar="DIR")
    parser.add_argument("--vllm", type=Path, metavar="PYTHON", help="of an environment with vLLM or vllm-cpu")
    parser.add_argument(
        "--readapt", nargs="+", default=[], metavar="WORD", help="command in place of this environment's"
    )
    parser.add_argument("--runs", type=positive, default=3)
    parser.add_argument("--threads", type=positive, default=1, help="cores of a server")
    parser.add_argument("--pool", default="1Gi", metavar="AMOUNT", help="pool of servers")
    parser.add_argument("--memory-limit", type=int, default=0, metavar="MIB", help="default: half of what is free")
    parser.add_argument("--out", type=Path, metavar="DIR", help="gets JSON records and plots")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="for adapters; default: the system's")


@contextmanager
def launching(told: argparse.Namespace, model_len: int = MAX_MODEL_LEN) -> Iterator[Launch]:
    """As told; this process keeps to the client's cores meanwhile."""
    limit = (told.memory_limit << 20) or psutil.virtual_memory().available // 2
    cores, before = Cores.split(told.threads), psutil.Process().cpu_affinity()
    psutil.Process().cpu_affinity(list(cores.client))
    try:
        yield Launch(told.base, cores, limit, model_len)
    finally:
        psutil.Process().cpu_affinity(before)


def private_bytes(pid: int) -> int:
    """Unique set size of a process and its children; what goes away meanwhile counts nothing."""
    total = 0
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        try:
            total += process.memory_full_info().uss
        except psutil.NoSuchProcess:
            continue
    return total


def cpu_seconds(pid: int) -> float:
    """Processor time of a process, in steps of 10 ms, without its children's; other load changes it little."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def warm(folders: Sequence[Path]) -> None:
    """Reads every file once, so that starts are timed with warm files."""
    for folder in folders:
        for path in folder.iterdir():
            if path.is_file():
                path.read_bytes()


def _announced(process: subprocess.Popen[str]) -> tuple[str, str]:
    """The first line of ``readapt serve``; raises ServerFailed when it ended instead."""
    told = json.loads((process.stdout.readline() if process.stdout else "") or "null")
    if not told:
        raise ServerFailed(f"ended with {process.wait()} before it listened")
    return told["serving"], told["admin"]


def _answers(http: httpx.Client, url: str) -> bool:
    try:
        return http.get(url).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
